"""Choose a method's settings for a network and data, on the validation split, within a budget."""

from steppe.experiments.tuning.search import Budget, Search, search
from steppe.experiments.tuning.space import Range, space, spec_with

__all__ = ["Budget", "Range", "Search", "search", "space", "spec_with"]
