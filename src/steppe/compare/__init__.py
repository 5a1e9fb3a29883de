"""Fair comparison: a grid of runs that share data, initial weights and budget, each done once and resumed."""

from steppe.compare.grid import Grid, Job, prepare, run
from steppe.compare.launchers import Launcher

__all__ = ["Grid", "Job", "Launcher", "prepare", "run"]
