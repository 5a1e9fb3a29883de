"""Training of one run in a folder: the loop, evaluation, checkpoints, export."""
