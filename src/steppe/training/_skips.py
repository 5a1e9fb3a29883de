"""Skipped steps of an epoch, counted without waiting for a GPU in each step."""

import torch
from torch import Tensor

_STACKED = 512


class Skips:
    """The flags of an epoch's steps: 1 where a step was skipped, on the device that knows."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._stacked: list[Tensor] = []
        self._good: Tensor | None = None

    def add(self, flag: Tensor) -> None:
        """Count a step."""
        self._flags.append(flag)
        self._good = flag == 0
        if len(self._flags) == _STACKED:
            self._stacked.append(torch.stack(self._flags))
            self._flags = []

    def masked(self, value: Tensor) -> Tensor:
        """Return a value of the step that was counted last, 0 if it was skipped."""
        return value if self._good is None else torch.where(self._good, value, 0)

    def rows(self, count: int) -> int | Tensor:
        """Return how many rows of that step count."""
        return count if self._good is None else self._good * count

    def read(self) -> list[bool]:
        """Return for each step whether it was skipped."""
        flags = self._stacked + ([torch.stack(self._flags)] if self._flags else [])
        return [bool(f) for f in torch.cat(flags).tolist()] if flags else []
