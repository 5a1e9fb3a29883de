"""Comparison of methods: a grid of runs that share data, initial weights and budget."""

from steppe.experiments.comparison import ComparisonPlan, prepare, run
from steppe.experiments.launchers import Launcher
from steppe.experiments.run_lock import ComparisonRun, News, TimeIsUp, until

__all__ = [
    "ComparisonPlan", "ComparisonRun", "Launcher", "News", "TimeIsUp", "prepare", "run", "until",
]  # fmt: skip
