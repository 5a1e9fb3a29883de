"""Tuning of a method's settings for a network and data, on the validation split, within a budget."""

from steppe.config import TuningBudget
from steppe.experiments.tuning.search import TuningResult, search
from steppe.experiments.tuning.space import Range, space, with_values

__all__ = ["Range", "TuningBudget", "TuningResult", "search", "space", "with_values"]
