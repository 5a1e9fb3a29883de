"""Transforms of the gradient."""
