"""Copies of a step's tensors, made over and over and given back: their storage is used again."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from steppe.vec import any_sharded


class Copies:
    """Copies of the same tensors, as many at a time as are needed."""

    def __init__(self) -> None:
        self._of: list[Tensor] = []
        self._free: list[list[Tensor]] = []

    def make(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return a copy of each tensor, without its graph; ``give_back`` takes them again."""
        fits = len(tensors) == len(self._of) and all(map(operator.is_, tensors, self._of))
        if not fits:
            self._of, self._free = list(tensors), []
        held = self._free.pop() if self._free else None
        if held is None or _form(held) != _form(tensors):
            with torch.no_grad():
                return [t.clone() for t in tensors]
        put(held, tensors)
        return held

    def give_back(self, copies: list[Tensor]) -> None:
        """Take copies that nobody reads any more."""
        if len(copies) == len(self._of):
            self._free.append(copies)


def put(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write each value into its tensor's own storage."""
    with torch.no_grad():
        if any_sharded(into):
            for t, value in zip(into, values, strict=True):
                t.copy_(value)
        elif into:
            torch._foreach_copy_(list(into), list(values))


def _form(tensors: Sequence[Tensor]) -> list[object]:
    """Return what must be equal for one to hold the other's values: a tensor's data may have been exchanged."""
    return [[t.shape for t in tensors], [t.dtype for t in tensors], [t.device for t in tensors[:1]]]
