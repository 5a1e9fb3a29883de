"""Sharpness-aware minimisation in fewer passes, or in less time."""
