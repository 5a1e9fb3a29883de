"""Comparison of methods: a grid of runs that share data, initial weights and budget."""

from steppe.experiments.comparison import ComparisonPlan, ComparisonRun, prepare, run
from steppe.experiments.launchers import Launcher

__all__ = ["ComparisonPlan", "ComparisonRun", "Launcher", "prepare", "run"]
