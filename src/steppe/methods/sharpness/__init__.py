"""Sharpness-aware minimisation and its variants."""
