"""Checkpoints: the file format, sharded files, and the store of a run."""
