"""Plain training and the controls."""
