"""Augmentation of batches."""
