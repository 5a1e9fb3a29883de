"""A batch of samples, whole or in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from steppe.errors import InputError

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """The samples of one step.

    ``x`` (B, ...) inputs, or a mapping of such tensors by the names of the network's arguments; ``y`` (B,) class
    indices, (B, classes) probabilities or whatever the loss takes, None where the network has its own loss;
    ``index`` (B,) the stable position of each sample in its data set, None where unknown; ``extra`` tensors of
    B rows that travel with the samples (the clean logits of an earlier pass, say) and are split with them.
    """

    x: Any
    y: Any = None
    index: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.x.values())) if isinstance(self.x, Mapping) else self.x)

    def parts(self) -> list[Batch]:
        """Return the micro-batches of this batch; a whole batch is its only one."""
        return [self]

    def with_extra(self, **extra: Any) -> Batch:
        """Return the same samples with these tensors (B, ...) in ``extra``."""
        return replace(self, extra={**self.extra, **extra})

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the chosen rows (indices, a mask or a slice) of every part."""
        return self._each(lambda t: t[rows])

    def split(self, size: int) -> Iterator[Batch]:
        """Yield consecutive batches of at most ``size`` samples."""
        if size < 1:
            raise ValueError(f"split size is {size}; give at least 1")
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def halves(self) -> tuple[Batch, Batch]:
        """Return the first and the second half (the first is larger by one if the count is odd)."""
        middle = (len(self) + 1) // 2
        return self.take(slice(0, middle)), self.take(slice(middle, None))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU can read while other work goes on."""
        return self._each(lambda t: t.pin_memory())

    def _each(self, f: Callable[[Tensor], Tensor]) -> Batch:
        def each(value: Any) -> Any:
            return {k: f(v) for k, v in value.items()} if isinstance(value, Mapping) else f(value)

        y = f(self.y) if isinstance(self.y, Tensor) else self.y
        index = None if self.index is None else f(self.index)
        return Batch(each(self.x), y, index, {k: each(v) for k, v in self.extra.items()})


class Accumulated(Batch):
    """One batch in micro-batches, whose shapes may differ beyond the first dimension (padded text).

    ``x``, ``y``, ``index`` and ``extra`` are those of the parts, joined; InputError is raised where shapes differ.
    """

    def __init__(self, parts: Sequence[Batch]):
        object.__setattr__(self, "_parts", list(parts))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts())

    def parts(self) -> list[Batch]:
        """Return the micro-batches."""
        return cast(list[Batch], self.__dict__["_parts"])

    def with_extra(self, **extra: Any) -> Batch:
        """Return the same samples with these in ``extra``: tensors (B, ...), or one tensor per part."""
        sizes = [len(part) for part in self.parts()]
        pieces = {k: torch.split(v, sizes) if isinstance(v, Tensor) else v for k, v in extra.items()}
        return Accumulated(
            [part.with_extra(**{k: v[i] for k, v in pieces.items()}) for i, part in enumerate(self.parts())]
        )

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the chosen rows, each from the micro-batch it is in, in the order of the batch."""
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[rows if isinstance(rows, slice) else rows.cpu()] = True
        pieces = zip(self.parts(), torch.split(chosen, [len(part) for part in self.parts()]), strict=True)
        rest = [part.take(mask.nonzero()[:, 0]) for part, mask in pieces if mask.any()]
        return rest[0] if len(rest) == 1 else Accumulated(rest)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return Accumulated([part.to(device) for part in self.parts()])

    @property
    def x(self) -> Any:
        """The inputs of all parts."""
        return _join([part.x for part in self.parts()])

    @property
    def y(self) -> Any:
        """The targets of all parts."""
        return _join([part.y for part in self.parts()])

    @property
    def index(self) -> Tensor | None:
        """The positions of all parts, None if one part has none."""
        indices = [part.index for part in self.parts()]
        return None if any(i is None for i in indices) else cast(Tensor, _join(indices))

    @property
    def extra(self) -> Mapping[str, Tensor]:
        """The extra tensors of all parts."""
        return {k: _join([part.extra[k] for part in self.parts()]) for k in self.parts()[0].extra}


def as_batch(x: Any, y: Any = None) -> Batch:
    """Return the arguments of a step as one batch: x and y, a Batch, a pair, a mapping, or a list of these.

    A mapping is a batch of named inputs, its ``labels`` the targets. A list is one batch in micro-batches.

    Raises InputError for anything else, and for an empty batch or list.
    """
    if y is not None:
        batch = Batch(x, y)
    elif isinstance(x, Batch):
        batch = x
    elif isinstance(x, list):
        if not x:
            raise InputError("the list of micro-batches is empty; give at least one")
        parts = [as_batch(part) for part in x]
        return parts[0] if len(parts) == 1 else Accumulated(parts)
    elif isinstance(x, Mapping):
        named = {k: v for k, v in x.items() if k != "labels"}
        if not named:
            raise InputError("the batch has no inputs; give a mapping of tensors by argument name")
        batch = Batch(named, x.get("labels"))
    elif isinstance(x, tuple) and len(x) == 2:
        batch = Batch(x[0], x[1])
    else:
        raise InputError(
            f"a step takes x and y, a Batch, a pair, a mapping, or a list of these; this is {type(x).__name__}"
        )
    if not len(batch):
        raise InputError("the batch has no samples; leave empty batches out")
    return batch


def join_logits(parts: Sequence[Tensor]) -> Any:
    """Return the parts' logits as one tensor, or as a list where their shapes differ beyond the batch."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts)) if len({p.shape[1:] for p in parts}) == 1 else list(parts)


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {k: _join([v[k] for v in values]) for k in first}
    if not isinstance(first, Tensor):
        return first
    if len({v.shape[1:] for v in values}) > 1:
        raise InputError("these micro-batches have different shapes and cannot be joined; use batch.parts()")
    return torch.cat(list(values))
