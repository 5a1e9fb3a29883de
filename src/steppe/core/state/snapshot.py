"""Weights, buffers and optimizer state as they were before a pass or an update, to be restored bit for bit.

Values are copied back into the tensors' own storage: adding and subtracting an offset drifts, and rebinding
``.data`` breaks everything that holds the storage.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.numerics.vector import PLAIN

Named = dict[str, Tensor | None]
_TYPE = attrgetter("dtype")
SMALL = 4096  # elements; copied in less time than an operation takes


class Snapshot:
    """The values that tensors had when it was made.

    ``reuse`` is a snapshot that nobody needs any more; its storage is written over if it fits.
    """

    _joined: list[tuple[list[Tensor], Tensor]]
    _groups: list[tuple[list[Tensor], list[Tensor], bool]]

    def __init__(self, tensors: Sequence[Tensor], reuse: Snapshot | None = None):
        self._tensors, self._layout = tensors, _layout(tensors)
        if reuse is not None and self._layout == reuse._layout and all(map(is_, tensors, reuse._tensors)):
            self._joined, self._groups = reuse._joined, reuse._groups
        else:
            self._allocate()
        with torch.no_grad():
            for vectors, joined in self._joined:
                torch.cat(vectors, out=joined)
        for current, values, taken in self._groups:
            if not taken:
                _copy(values, current)

    def _allocate(self) -> None:
        # to copy a small tensor on a CPU takes longer than to join it to others
        self._joined, self._groups = [], []
        small = [t for t in self._tensors if type(t) in PLAIN and _is_small(t)]
        for current, _ in _by_type(small, small):
            vectors = [t.detach().view(-1) for t in current]
            joined = torch.cat(vectors)
            parts = torch.split(joined, [v.numel() for v in vectors])
            self._joined.append((vectors, joined))
            self._groups.append((current, [p.view(t.size()) for p, t in zip(parts, current, strict=True)], True))
        chosen = set(map(id, small))
        rest = [t for t in self._tensors if id(t) not in chosen]
        with torch.no_grad():
            values = [torch.empty_like(t, requires_grad=False) for t in rest]
        self._groups += [(*group, False) for group in _by_type(rest, values)]

    def restore(self) -> None:
        """Copy the values back."""
        for current, values, _ in self._groups:
            _copy(current, values)


class SnapshotPool:
    """Makes snapshots of the same tensors again and again in the same storage, whose allocation takes long."""

    def __init__(self) -> None:
        self._free: list[Snapshot] = []

    def make(self, tensors: Sequence[Tensor]) -> Snapshot:
        """Return a snapshot of the tensors."""
        return Snapshot(tensors, self._free.pop() if self._free else None)

    def release(self, snapshot: Snapshot) -> None:
        """Let the next snapshot have the storage of this one."""
        self._free.append(snapshot)


class Buffers:
    """The buffers (running statistics, counters) of modules: a network, a loss."""

    def __init__(self, *modules: nn.Module):
        # to search a deep network for the modules that have buffers takes longer than to copy these
        self._modules: list[Named] = [m._buffers for net in modules for m in net.modules() if m._buffers]
        self._pool = SnapshotPool()

    def snapshot(self) -> BufferSnapshot:
        """Return a snapshot of the values, and of which module has which tensor."""
        return BufferSnapshot(self._modules, self._pool)


class BufferSnapshot:
    """Buffers as they were: their values, and the tensor that each module had under each name.

    Most modules write into their buffers. Some assign a new tensor (``self.count = self.count + 1``); they have
    their old one again on restoring.
    """

    def __init__(self, modules: Sequence[Named], pool: SnapshotPool):
        self._pool, self._before = pool, [(buffers, dict(buffers)) for buffers in modules]
        self._values = pool.make([t for _, named in self._before for t in named.values() if t is not None])

    def restore(self) -> None:
        """Restore which tensors the modules have, and the values of these.

        A tensor that was replaced by one of another shape or type (a table that has grown) is not put back: the
        module counts on the new one.
        """
        for buffers, named in self._before:
            for name, before in named.items():
                now = buffers.get(name)
                if now is not before and now is not None and before is not None and _alike(now, before):
                    buffers[name] = before
        self._values.restore()

    def release(self) -> None:
        """Give the storage to the next one."""
        self._pool.release(self._values)


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Switch modules to evaluation mode; then restore every mode, and the buffers that passes changed."""
    training = [m for net in modules for m in net.modules() if m.training]
    buffers = Buffers(*modules).snapshot()
    try:
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True
        buffers.restore()


class OptimizerSnapshot:
    """Weights and all that the optimizer keeps in its state and its groups."""

    def __init__(self, params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, pool: SnapshotPool):
        self._optimizer, self._pool = optimizer, pool
        self._state = {p: _copied(state) for p, state in optimizer.state.items()}
        self._groups = [_copied(group) for group in optimizer.param_groups]
        entries = [v for values in (*self._state.values(), *self._groups) for v in values.values()]
        self._values = pool.make([*params, *(v for v in entries if isinstance(v, Tensor))])

    def restore(self) -> None:
        """Put every entry back; one that is a tensor is the same tensor as before, with the values of before."""
        state = self._optimizer.state
        for p in [p for p in state if p not in self._state]:
            del state[p]
        now = [*(state[p] for p in self._state), *self._optimizer.param_groups]
        for entries, before in zip(now, (*self._state.values(), *self._groups), strict=True):
            entries.clear()
            entries.update(before)
        self._values.restore()

    def release(self) -> None:
        """Give the storage to the next one."""
        self._pool.release(self._values)


Group = tuple[list[Tensor], list[Tensor]]


def copy_into(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write each value into its target's own storage."""
    for group in _by_type(targets, values):
        _copy(*group)


def _by_type(targets: Sequence[Tensor], values: Sequence[Tensor]) -> list[Group]:
    """Return targets and values in groups of one type, which a GPU copies in one launch; sharded ones alone."""
    if not PLAIN.issuperset(map(type, targets)):
        return [([target], [value]) for target, value in zip(targets, values, strict=True)]
    groups: dict[tuple[torch.dtype, torch.device], Group] = {}
    for target, value in zip(targets, values, strict=True):
        into, source = groups.setdefault((target.dtype, target.device), ([], []))
        into.append(target)
        source.append(value)
    return list(groups.values())


def _copy(targets: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        if len(targets) == 1:
            targets[0].copy_(values[0])
        else:
            torch._foreach_copy_(targets, values)


def _is_small(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.layout == torch.strided and t.is_contiguous() and 0 < t.numel() <= SMALL


def _layout(tensors: Sequence[Tensor]) -> list[Any]:
    """Return the types, shapes and storages of tensors, which may change in a tensor that is the same."""
    storages = map(Tensor.data_ptr, tensors) if PLAIN.issuperset(map(type, tensors)) else ()
    return [*storages, *map(_TYPE, tensors), *map(Tensor.size, tensors)]


def _copied(entries: dict[str, Any]) -> dict[str, Any]:
    """Return copies of plain values; parameters and tensors themselves, whose values are copied apart."""
    return {k: v if isinstance(v, Tensor) or k == "params" else copy.deepcopy(v) for k, v in entries.items()}


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def all_alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Return whether two lists of tensors have the same shapes, types and devices."""
    return len(a) == len(b) and all(map(_alike, a, b))
