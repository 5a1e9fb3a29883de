"""Inputs and targets in mappings, tuples, lists and dataclasses: counted, cut and joined by sample."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from steppe.errors import InputError

Rows = Tensor | slice


class AmbiguousError(InputError):
    """A sequence has as many entries as its entries have rows: either may be the samples."""


_FLAGS = (Number, str, bytes, Enum, torch.dtype, torch.device, type(None))


def entries_of(value: Any) -> dict[str, Any] | None:
    """Return the entries of a mapping, the fields of a dataclass, None for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return None


def is_flag(value: Any) -> bool:
    """Return whether a value is of no sample in particular: a number, a text, None, a 0-dimensional tensor."""
    return isinstance(value, _FLAGS) or (isinstance(value, Tensor) and not value.dim())


def leaves(value: Any) -> Iterator[Any]:
    """Yield what is nested in a value, a packed sequence as one."""
    entries = entries_of(value)
    nested = isinstance(value, list | tuple) and not isinstance(value, PackedSequence)
    if entries is None and not nested:
        yield value
    for part in value if entries is None and nested else (entries or {}).values():
        yield from leaves(part)


def map_leaves(f: Callable[[Any], Any], value: Any) -> Any:
    """Return the value with ``f`` applied to all that is nested in it; a mapping becomes a dictionary."""
    entries = entries_of(value)
    if entries is not None:
        return _with_entries(value, {k: map_leaves(f, v) for k, v in entries.items()})
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        return _like(value, [map_leaves(f, v) for v in value])
    return f(value)


def is_per_sample(value: Any) -> bool:
    """Return whether a value is a sequence of mappings or dataclasses, such as the boxes of each image."""
    return isinstance(value, list | tuple) and bool(value) and all(entries_of(v) is not None for v in value)


def sample_counts(value: Any) -> set[int]:
    """Return the numbers of samples that a value may have, none if it does not tell.

    A tensor has its rows, a packed sequence its sequences. The tensors of a mapping should agree. A list or a
    tuple has an entry per sample, or tensors that agree.
    """
    if isinstance(value, Tensor):
        return {value.size(0)} if value.dim() else set()
    if isinstance(value, PackedSequence):
        return {int(value.batch_sizes[0])}
    entries = entries_of(value)
    if entries is None and not isinstance(value, list | tuple):
        return set()
    counts = [c for c in map(sample_counts, value if entries is None else entries.values()) if c]
    common = set.intersection(*counts) if counts else set()
    return common | {len(value)} if entries is None else common or set().union(*counts)


def take(value: Any, rows: Rows, size: int, *, per_sample: bool = False) -> Any:
    """Return the chosen rows (indices, a mask or a slice) of a value of ``size`` samples.

    Numbers, texts and 0-dimensional tensors stay as they are. A sequence has an entry per sample if
    ``per_sample``.

    Raises InputError for what cannot be cut.
    """
    if isinstance(value, Tensor) and value.dim() and value.size(0) == size and not value.is_nested:
        # rows chosen on a GPU choose there, also among values that are not
        return value[rows] if isinstance(rows, slice) or rows.device.type == "cpu" else value.to(rows.device)[rows]
    if isinstance(value, PackedSequence) and sample_counts(value) == {size}:
        sequences = unpack_sequence(value)
        chosen = [sequences[i] for i in _indices(rows, size)]
        return pack_sequence(chosen, enforce_sorted=value.sorted_indices is None)
    entries = entries_of(value)
    if entries is not None:
        return _with_entries(value, {k: take(v, rows, size) for k, v in entries.items()})
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        if (per_sample and len(value) == size) or _per_sample(value, size):
            return _like(value, [value[i] for i in _indices(rows, size)])
        return _like(value, [take(v, rows, size) for v in value])
    if is_flag(value):
        return value
    raise InputError(f"the batch has {size} samples and {_described(value)}, which cannot be cut; {_WHOLE}")


def join(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Return the values of several batches of these sizes as one; raises InputError where that is impossible."""
    first = values[0]
    if len({type(v) for v in values}) > 1:
        raise InputError("these micro-batches have different types and cannot be joined; use batch.parts()")
    if isinstance(first, Tensor) and first.dim():
        if len({v.shape[1:] for v in values}) > 1:
            raise InputError("these micro-batches have different shapes and cannot be joined; use batch.parts()")
        return torch.cat(list(values))
    if isinstance(first, PackedSequence):
        return pack_sequence([s for v in values for s in unpack_sequence(v)], enforce_sorted=False)
    entries = [entries_of(v) for v in values]
    if entries[0] is not None and all(e is not None and e.keys() == entries[0].keys() for e in entries):
        joined = {k: join([e[k] for e in entries if e], sizes) for k in entries[0]}
        return _with_entries(first, joined)
    if isinstance(first, list | tuple):
        if _all_per_sample(values, sizes):
            return _like(first, [entry for v in values for entry in v])
        return _like(first, [join(column, sizes) for column in zip(*values, strict=True)])
    if all(v is first or (isinstance(v, (*_FLAGS, Tensor)) and bool(v == first)) for v in values):
        return first
    raise InputError(f"these micro-batches have {_described(first)} and cannot be joined; use batch.parts()")


_WHOLE = "leave microbatch, m and methods that cut a batch out, or give a tensor of one row per sample"


def _per_sample(value: Sequence[Any], size: int) -> bool:
    """Return whether a sequence has an entry per sample, rather than entries of ``size`` rows each."""
    rows = [size in sample_counts(v) for v in value]
    nested = any(rows) and all(row or is_flag(v) for row, v in zip(rows, value, strict=True))
    alike = len({(type(v), v.dim() if isinstance(v, Tensor) else 0) for v in value}) == 1
    if nested and len(value) == size and is_per_sample(value):
        return True
    if nested and alike and len(value) == size:
        raise AmbiguousError(
            f"a {type(value).__name__} of {size} entries of {size} rows may be one per sample or one per input; "
            "name them in a mapping"
        )
    if nested or len(value) == size:
        return not nested
    raise InputError(f"the batch has {size} samples and {_described(value)}, which cannot be cut; {_WHOLE}")


def _all_per_sample(values: Sequence[Sequence[Any]], sizes: Sequence[int]) -> bool:
    """Return whether the sequences of several batches have an entry per sample; those that are clear decide."""
    clear, unclear = [], None
    for value, size in zip(values, sizes, strict=True):
        try:
            clear.append(_per_sample(value, size))
        except AmbiguousError as error:
            unclear = error
    if unclear and not clear:
        raise unclear
    return all(clear)


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Tensor) and not value.is_nested:
        return f"a tensor {tuple(value.shape)}"
    return f"a {kind} of {len(value)} entries" if isinstance(value, list | tuple) else f"a {kind}"


def _indices(rows: Rows, size: int) -> list[int]:
    indices: list[int] = torch.arange(size)[rows if isinstance(rows, slice) else rows.cpu()].tolist()
    return indices


def _with_entries(value: Any, entries: dict[str, Any]) -> Any:
    return entries if isinstance(value, Mapping) else replace(value, **entries)


def _like(value: Any, items: list[Any]) -> Any:
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
