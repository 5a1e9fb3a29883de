"""Copies of a step's tensors, made over and over: many tensors lie in one, and their storage is used again.

Most tensors of a network are small, and what copying one costs is then the call. So all tensors of one type are
copied in one operation, side by side into a long one that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_

import torch
from torch import Tensor

from steppe.core.numerics.vector import PLAIN, any_sharded

# What is joined; tensors of rarer types (quantised, of eight bits) are copied one by one.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_JOINED = frozenset((*_FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool))


class CopyPool:
    """Copies of the same tensors, as many at a time as are needed."""

    def __init__(self) -> None:
        self._places: _Places | None = None
        self._free: list[TensorCopy] = []

    def make(self, tensors: Sequence[Tensor]) -> TensorCopy:
        """Return a copy of the tensors as they are; ``give_back`` takes it again."""
        if self._places is None or not self._places.are(tensors):
            self._places, self._free = _Places(tensors), []
        held = self._free.pop() if self._free else TensorCopy(self._places)
        held.take()
        return held

    def release(self, held: TensorCopy) -> None:
        """Take a copy that nobody needs any more."""
        if held.places is self._places:
            self._free.append(held)


class TensorCopy:
    """What tensors were when it was made."""

    def __init__(self, places: _Places):
        self.places = places
        with torch.no_grad():
            self._long = [torch.cat(row.vectors) for row in places.rows]
        self._parts = [row.parts(long) for row, long in zip(places.rows, self._long, strict=True)]
        self._apart: list[Tensor] = []

    def take(self) -> None:
        """Let it be what the tensors are now."""
        with torch.no_grad():
            for row, long in zip(self.places.rows, self._long, strict=True):
                torch.cat(row.vectors, out=long)
            self._apart = [t.clone() for t in self.places.apart]

    def restore(self) -> None:
        """Write it into the tensors' own storage, bit for bit."""
        with torch.no_grad():
            for row, parts in zip(self.places.rows, self._parts, strict=True):
                # into the tensors: where the vectors lie they may lie no more
                torch._foreach_copy_(row.tensors, parts)
            if self._apart:
                copy_into(self.places.apart, self._apart)


class _Row:
    """Tensors of one type on one device, each as a vector in the order of memory, and their sizes and strides."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.vectors: list[Tensor] = []
        self.forms: list[tuple[torch.Size, tuple[int, ...]]] = []

    def add(self, t: Tensor, vector: Tensor) -> None:
        """Take in one more."""
        self.tensors.append(t)
        self.vectors.append(vector)
        self.forms.append((t.size(), t.stride()))

    def parts(self, long: Tensor) -> list[Tensor]:
        """Return each tensor's part of a long vector, in the tensor's own form."""
        parts = torch.split(long, [v.numel() for v in self.vectors])
        return [part.as_strided(*form) for part, form in zip(parts, self.forms, strict=True)]


class _Places:
    """Where tensors lie: in rows that can be joined, or apart."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._tensors = tuple(tensors)
        rows: dict[tuple[torch.dtype, torch.device], _Row] = {}
        self.apart: list[Tensor] = []
        for t in tensors:
            vector = _as_vector(t)
            if vector is None:
                self.apart.append(t)
            else:
                rows.setdefault((t.dtype, t.device), _Row()).add(t, vector)
        self.rows = list(rows.values())
        pairs = [pair for row in self.rows for pair in zip(row.tensors, row.vectors, strict=True)]
        self._seen = [t for t, vector in pairs if t is not vector]
        # what is all of its storage cannot be more of it later
        self._sized = [
            t for t, vector in pairs if t is vector or t.untyped_storage().nbytes() != t.numel() * t.element_size()
        ]
        self._where = self._look()

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether these are the tensors, and still lie there."""
        same = tensors is self._tensors or (
            len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        )
        # a tensor's data may have been exchanged
        return same and self._look() == self._where

    def _look(self) -> list[int]:
        # the views keep the storage alive, so that no other can have its address
        return [*map(Tensor.data_ptr, self._seen), *map(attrgetter("nbytes"), self._sized)]


def copy_into(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write each value into its tensor's own storage."""
    with torch.no_grad():
        if any_sharded(into):
            for t, value in zip(into, values, strict=True):
                t.copy_(value)
        elif into:
            torch._foreach_copy_(list(into), list(values))


def _as_vector(t: Tensor) -> Tensor | None:
    """Return all of a tensor's storage as a vector, itself if it is one, None where that cannot be."""
    if type(t) not in PLAIN or t.layout != torch.strided or t.dtype not in _JOINED:
        return None
    if t.dim() == 1 and t.is_contiguous():
        return t
    dense = t.detach().permute(sorted(range(t.dim()), key=t.stride, reverse=True))
    return dense.view(-1) if dense.is_contiguous() else None
