"""The options of a search: its budget."""

from dataclasses import dataclass, field
from typing import Literal

from steppe.config._checks import check_choices
from steppe.errors import InputError

Pruner = Literal["median", "halving", "none"]


@dataclass(frozen=True)
class TuningBudget:
    """The budget of a search.

    Attributes:
        trials: Number of values to try.
        seconds: Time limit in seconds for everything, baseline and confirmation included; no limit if not given.
            At least one trial is made.
        seeds: Runs per trial, each with another seed.
        confirm: Number of fresh seeds on which the best setting and plain are trained at the end.
        pruner: Which trials stop early: by the median, by successive halving, or none.
    """

    trials: int = 20
    seconds: float | None = field(default=None, metadata={"option": "within"})
    seeds: int = 1
    confirm: int = 3
    pruner: Pruner = "median"

    def __post_init__(self) -> None:
        for name in ("trials", "seeds", "confirm"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"within is {self.seconds}; give a number of seconds above 0")
        check_choices(self)
