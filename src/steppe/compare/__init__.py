"""Fair comparison: a grid of runs that share data, initial weights and budget, each done once and resumed."""

from steppe.compare.grid import Grid, Job, prepare, run

__all__ = ["Grid", "Job", "prepare", "run"]
