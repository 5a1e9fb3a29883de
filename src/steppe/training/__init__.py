"""One run in a folder: the loop, evaluation, checkpoints."""
