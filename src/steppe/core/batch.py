"""A batch of samples, whole or in micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steppe.core import _nested as nested
from steppe.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step.

    ``x`` (B, ...) inputs, or a mapping of such tensors by the names of the network's arguments, or a packed
    sequence; ``y`` (B,) class indices, (B, classes) probabilities or whatever the loss takes, None where the
    network has its own loss. Both may be nested: mappings, tuples and dataclasses of such tensors, and lists of
    one entry per sample, are counted and cut by sample, and flags stay as they are.
    ``index`` (B,) the stable position of each sample in its data set, None where unknown; ``extra`` tensors of
    B rows that travel with the samples (the clean logits of an earlier pass, say) and are split with them.
    """

    x: Any
    y: Any = None
    index: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of samples.

        Where ``index``, x and y leave it open, this is the largest that it may be, 1 if nothing tells it. Such a
        batch is used whole: it is not cut, and not weighed against others (see `require_size`).
        """
        return max(self._sizes(), default=1)

    def _sizes(self) -> set[int]:
        """Return the numbers of samples that the batch may have."""
        if self.index is not None:
            return {len(self.index)}
        if isinstance(self.x, Tensor) and self.x.dim():
            return {self.x.size(0)}
        of_x, of_y = nested.sample_counts(self.x), nested.sample_counts(self.y)
        possible = (of_x & of_y, of_x, of_y)
        for counts in possible:
            if len(counts) == 1:
                return counts
            if nested.is_per_sample(self.y) and len(self.y) in counts:
                return {len(self.y)}
        return next(filter(None, possible), set())

    @property
    def has_size(self) -> bool:
        """Whether the number of samples is clear."""
        return len(self._sizes()) == 1

    def require_size(self) -> None:
        """Raise InputError unless the number of samples is clear, as cuts and means over batches need."""
        if not self.has_size:
            raise InputError(
                f"x is a {type(self.x).__name__} and y a {type(self.y).__name__} of unclear numbers of samples; "
                "give a steppe.Batch with an index (B,), or leave out microbatch, m and methods that cut a batch"
            )

    def require_countable(self) -> None:
        """Raise InputError unless x and y agree on the number of samples, by which means over batches weigh."""
        self.require_size()
        counts = nested.sample_counts(self.y)
        # the targets of a connectionist loss are of all samples in a row, next to the length of each
        each = set().union(*map(nested.sample_counts, nested.leaves(self.y)))
        if counts and len(self) not in counts | each:
            raise InputError(
                f"x has {len(self)} samples and y {' or '.join(map(str, sorted(counts)))}; "
                "give bind weigh=, a function that counts a batch's samples"
            )

    def parts(self) -> list[Batch]:
        """Return the micro-batches of this batch; a whole batch is its only one."""
        return [self]

    def with_extra(self, **extra: Any) -> Batch:
        """Return the same samples with these tensors (B, ...) in ``extra``."""
        return replace(self, extra={**self.extra, **extra})

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the chosen rows (indices, a mask or a slice) of every part."""
        self.require_size()
        size, per_sample = len(self), nested.is_per_sample(self.y)
        return self._each(lambda value: nested.take(value, rows, size, per_sample=per_sample))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield consecutive batches of at most ``size`` samples."""
        if size < 1:
            raise ValueError(f"split size is {size}; give at least 1")
        if size >= len(self) and self._sizes():
            yield self
            return
        self.require_size()
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def cut(self, count: int) -> list[Batch]:
        """Return so many consecutive batches of nearly equal sizes, at most one for each sample."""
        count = min(count, len(self))
        edges = [i * len(self) // count for i in range(count + 1)]
        return [self] if count < 2 else [self.take(slice(a, b)) for a, b in pairwise(edges)]

    def halves(self) -> tuple[Batch, Batch]:
        """Return the first and the second half (the first is larger by one if the count is odd)."""
        middle = (len(self) + 1) // 2
        return self.take(slice(0, middle)), self.take(slice(middle, None))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return self._each_leaf(lambda t: t.to(device, non_blocking=True) if hasattr(t, "to") else t)

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU can read while other work goes on."""
        return self._each_leaf(lambda t: t.pin_memory() if hasattr(t, "pin_memory") else t)

    def _each_leaf(self, f: Callable[[Any], Any]) -> Batch:
        return self._each(lambda value: nested.map_leaves(f, value))

    def _each(self, f: Callable[[Any], Any]) -> Batch:
        index = None if self.index is None else f(self.index)
        return Batch(
            f(self.x), None if self.y is None else f(self.y), index, {k: f(v) for k, v in self.extra.items()}
        )


@dataclass(frozen=True, eq=False)
class MicroBatches(Batch):
    """One batch in micro-batches, whose shapes may differ beyond the first dimension (padded text).

    ``x``, ``y``, ``index`` and ``extra`` are those of the ``pieces``, joined; InputError is raised where shapes
    differ.
    """

    x: Any = field(init=False, repr=False)
    y: Any = field(init=False, repr=False)
    index: Tensor | None = field(init=False, repr=False)
    extra: Mapping[str, Tensor] = field(init=False, repr=False)
    pieces: Sequence[Batch] = ()

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def has_size(self) -> bool:
        """Whether the number of samples of each part is clear."""
        return all(part.has_size for part in self.parts())

    def _sizes(self) -> set[int]:
        return {len(self)}

    def parts(self) -> list[Batch]:
        """Return the micro-batches."""
        return list(self.pieces)

    def with_extra(self, **extra: Any) -> Batch:
        """Return the same samples with these in ``extra``: tensors (B, ...), or one tensor per part.

        Raises InputError for a tensor of another number of rows.
        """
        sizes = list(map(len, self.pieces))
        for name, value in extra.items():
            if isinstance(value, Tensor) and len(value) != len(self):
                raise InputError(
                    f"{name} has {len(value)} rows and the micro-batches have {len(self)} samples; give one row "
                    "per sample: outputs (B, T, classes), not (B T, classes)"
                )
        values = {k: torch.split(v, sizes) if isinstance(v, Tensor) else v for k, v in extra.items()}
        return MicroBatches(
            [part.with_extra(**{k: v[i] for k, v in values.items()}) for i, part in enumerate(self.pieces)]
        )

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the chosen rows in their order: a micro-batch for each run of rows of the same one."""
        numbers = torch.arange(len(self))[rows if isinstance(rows, slice) else rows.cpu()]
        ends = torch.tensor(list(map(len, self.pieces))).cumsum(0)
        _, runs = torch.unique_consecutive(torch.bucketize(numbers, ends, right=True), return_counts=True)
        pieces = []
        for chosen in torch.split(numbers, runs.tolist()):
            owner = int(torch.bucketize(chosen[0], ends, right=True))
            part = self.pieces[owner]
            first = int(ends[owner]) - len(part)
            whole = len(chosen) == len(part) and bool((chosen.diff() == 1).all())
            pieces.append(part if whole else part.take(chosen - first))
        return pieces[0] if len(pieces) == 1 else MicroBatches(pieces)

    def _each_leaf(self, f: Callable[[Any], Any]) -> Batch:
        return MicroBatches([part._each_leaf(f) for part in self.pieces])

    def _joined(self, name: str) -> Any:
        values = [getattr(part, name) for part in self.pieces]
        sizes = list(map(len, self.pieces))
        if name == "extra":
            return {k: nested.join([v[k] for v in values], sizes) for k in values[0]}
        return None if name == "index" and any(v is None for v in values) else nested.join(values, sizes)


def _joined(name: str) -> property:
    return property(lambda self: self._joined(name))


for _name in ("x", "y", "index", "extra"):  # not fields of its own: `dataclasses.replace` gives other pieces
    setattr(MicroBatches, _name, _joined(_name))


def micro_batches(batch: Batch, largest: int | None, most_parts: Callable[[int], int]) -> list[Batch]:
    """Return a batch's parts of at most ``largest`` samples, of nearly equal sizes.

    Equal, because BatchNorm has no variance of a rest of one sample; and equally many on each process of a sharded
    model (``most_parts``), because all of them run each layer at the same time.
    """
    pieces = batch.parts()
    if largest is None:
        return pieces
    if len(pieces) == 1:
        return batch.cut(most_parts(math.ceil(len(batch) / largest)))
    return [p for one in pieces for p in one.cut(math.ceil(len(one) / largest))]


def as_batch(x: Any, y: Any = None) -> Batch:
    """Return the arguments of a step as one batch: x and y, a Batch, a pair, a mapping, or a list of these.

    A mapping is a batch of named inputs, its ``labels`` the targets. A list is one batch in micro-batches, or the
    pair of a DataLoader, if it has two entries and one of them is a tensor.

    Raises InputError for anything else, and for an empty batch or list.
    """
    if y is not None:
        batch = Batch(x, y)
        if type(x) is Tensor and type(y) is Tensor and x.dim() and x.size(0):
            return batch
    elif isinstance(x, Batch):
        batch = x
    elif isinstance(x, list) and not (len(x) == 2 and any(isinstance(entry, Tensor) for entry in x)):
        if not x:
            raise InputError("the list of micro-batches is empty; give at least one")
        parts = [as_batch(part) for part in x]
        return parts[0] if len(parts) == 1 else MicroBatches(parts)
    elif isinstance(x, Mapping):
        named = {k: v for k, v in x.items() if k != "labels"}
        if not named:
            raise InputError("the batch has no inputs; give a mapping of tensors by argument name")
        batch = Batch(named, x.get("labels"))
    elif isinstance(x, tuple | list) and len(x) == 2:
        batch = Batch(x[0], x[1])
    else:
        raise InputError(
            f"a step takes x and y, a Batch, a pair, a mapping, or a list of these; this is {type(x).__name__}"
        )
    for part in batch.parts():
        _require_tensors(part)
    if not len(batch):
        raise InputError("the batch has no samples; leave empty batches out")
    return batch


def _require_tensors(batch: Batch) -> None:
    """Raise InputError for inputs that no network takes."""
    if nested.is_flag(batch.x):
        raise InputError(f"x is {batch.x!r}; give a tensor of one row per sample")
    targets = (
        batch.y if isinstance(batch.y, list | tuple) else [batch.y]
    )  # what mappings name is the loss's affair
    for name, values in (("x", [] if isinstance(batch.x, Tensor) else nested.leaves(batch.x)), ("y", targets)):
        if any(map(_is_array, values)):
            raise InputError(f"{name} has a numpy array; give a tensor, torch.as_tensor(array)")


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "ndim", 0) > 0 and value.dtype.kind in "biufc"


def join_logits(parts: Sequence[Tensor]) -> Any:
    """Return the parts' logits as one tensor, or as a list where their shapes differ beyond the batch."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts)) if len({p.shape[1:] for p in parts}) == 1 else list(parts)
