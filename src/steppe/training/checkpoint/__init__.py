"""Checkpoints: the file format, the store, sharded ones."""
