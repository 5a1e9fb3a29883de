"""Fair comparison: a grid of runs that share data, initial weights and budget, each done once and resumed."""

from steppe.experiments.comparison import Grid, Job, prepare, run
from steppe.experiments.launchers import Launcher

__all__ = ["Grid", "Job", "Launcher", "prepare", "run"]
