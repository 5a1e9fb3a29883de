"""Steppe in other people's training loops, one thin module each; import the one that is wanted."""
