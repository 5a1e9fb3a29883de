"""Checks and speed on a GPU: ``make gpu``, or ``python -m benchmarks.gpu``."""
