"""Developers' benchmarks of single parts, not shipped in the package: ``python -m benchmarks KIND [NAMES]``."""
