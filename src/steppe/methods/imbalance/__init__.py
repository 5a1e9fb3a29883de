"""Sharpness-aware minimisation for classes of different sizes."""
