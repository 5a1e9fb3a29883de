"""Weights, buffers and optimizer state as they were before a pass or an update, to be restored bit for bit.

Values are copied back into the tensors' own storage: adding and subtracting an offset drifts, and rebinding
``.data`` breaks everything that holds the storage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.numerics.vector import PLAIN
from steppe.errors import InputError

Entries = dict[Any, Any]  # a module's buffers, an optimizer's group or state, by name
_KIND = attrgetter("shape", "dtype", "device")
_CHUNK = 2**24  # elements that are chosen at once
_ATOMIC = frozenset((float, int, bool, str, type(None)))
_noted: list[list[Snapshot]] = []  # by `noted`


class Snapshot:
    """The values that tensors had when it was taken, and what dictionaries held.

    ``entries`` are the dictionaries and what they held. What a module assigned anew (``self.count =
    self.count + 1``) is the old tensor again after `restore`. With ``grown`` a tensor that was replaced by one of
    another shape or type (a table that has grown) is not put back: the module counts on the new one.
    """

    def __init__(self, tensors: Sequence[Tensor], pool: SnapshotPool | None = None):
        self.tensors, self.kinds, self._pool = tensors, list(map(_KIND, tensors)), pool
        places = [_distinct(t, t) for t in tensors]
        # their view of an expanded tensor does not follow its data
        self.reusable = all(map(is_, places, tensors))
        with torch.no_grad():
            values = [torch.empty_like(t, requires_grad=False) for t in places]
        self._groups = _by_type(places, values)
        self.entries: Sequence[tuple[Entries, Entries]] = ()
        self.grown = False
        self.copy()

    def copy(self) -> None:
        """Copy the present values."""
        for used in _noted:
            used.append(self)
        with torch.no_grad():
            for current, values in self._groups:
                _copy(values, current)

    def restore(self) -> None:
        """Put every entry back, and copy every value back into its tensor."""
        for live, before in self.entries:
            if self.grown:
                replaced = [k for k, t in before.items() if live.get(k) is not t and _alike(live.get(k), t)]
                live.update({k: before[k] for k in replaced})
            else:
                live.clear()
                live.update(before)
        with torch.no_grad():
            for current, values in self._groups:
                _copy(current, values)

    def restore_where(self, flag: Tensor) -> None:
        """Copy every value back into its tensor if ``flag`` () is true, without waiting for it.

        What a module assigned anew gets the value of the tensor before. Nothing may hold values on the host.
        """
        with torch.no_grad():
            for current, values in self._groups:
                _choose(current, values, flag)
            for live, before in self.entries:
                for name, old in before.items():
                    new = live.get(name)
                    if isinstance(old, Tensor) and isinstance(new, Tensor) and new is not old and _alike(new, old):
                        _distinct(new, new).copy_(_distinct(torch.where(flag, old, new), new))

    def release(self) -> None:
        """Let the next snapshot of the pool have the storage."""
        self.entries = ()
        if self._pool is not None and self.reusable:
            self._pool.free.append(self)


@contextmanager
def noted() -> Iterator[list[Snapshot]]:
    """Return a list of the snapshots that are taken within, for a graph whose memory must stay."""
    used: list[Snapshot] = []
    _noted.append(used)
    try:
        yield used
    finally:
        _noted.pop()


class SnapshotPool:
    """Makes snapshots of the same tensors again and again in the same storage, whose allocation takes long."""

    def __init__(self) -> None:
        self.free: list[Snapshot] = []

    def make(self, tensors: Sequence[Tensor]) -> Snapshot:
        """Return a snapshot of the tensors."""
        old = self.free.pop() if self.free else None
        # a tensor that is the same may have other data
        if old is None or old.kinds != list(map(_KIND, tensors)) or not all(map(is_, tensors, old.tensors)):
            return Snapshot(tensors, self)
        old.copy()
        return old


class Buffers:
    """The buffers (running statistics, counters) of modules, a network say, but for parts ``without``.

    Raises InputError for a nested tensor.
    """

    def __init__(self, *modules: nn.Module, without: tuple[type[nn.Module], ...] = ()):
        self._modules, self._without, self._pool = modules, without, SnapshotPool()
        self.refresh()

    def refresh(self) -> None:
        """Find modules that have buffers since, as a first forward pass may register some."""
        # to search a deep network for the modules that have buffers takes longer than to copy these
        parts = (m for net in self._modules for m in net.modules() if not isinstance(m, self._without))
        self._named: list[Entries] = [m._buffers for m in parts if m._buffers]
        for name, t in ((name, t) for named in self._named for name, t in named.items()):
            if t is not None and t.is_nested:
                raise InputError(f"the buffer {name} is a nested tensor, which a step cannot restore; pad it")

    def __bool__(self) -> bool:
        return bool(self._named)

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the values, and of which module has which tensor."""
        snapshot = self._pool.make([t for named in self._named for t in named.values() if t is not None])
        snapshot.entries, snapshot.grown = [(named, dict(named)) for named in self._named], True
        return snapshot


def of_training(
    params: Sequence[nn.Parameter], states: Sequence[Entries], groups: Sequence[Entries], pool: SnapshotPool
) -> Snapshot:
    """Return a snapshot of weights and of all that optimizers keep in their states and their groups."""
    each = [entry for state in states for entry in state.values()]
    entries = [(live, _copied(live)) for live in (*each, *groups)]
    tensors = [v for _, before in entries for v in before.values() if isinstance(v, Tensor)]
    snapshot = pool.make([*params, *tensors])
    snapshot.entries, snapshot.grown = [*((state, dict(state)) for state in states), *entries], False
    return snapshot


class Elsewhere:
    """The context of other weights for a while: what it changed is restored bit for bit on leaving.

    It restores ``tensors``, ``buffers`` and the states of ``generators``. ``change`` is called after they were
    saved, without gradients, and ``leave`` before they are restored. What autocast has cast is dropped on both
    occasions: within a user's autocast its cache would have the passes use the other weights.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        change: Callable[[], object] | None = None,
        *,
        buffers: Buffers | None = None,
        generators: Sequence[torch.Generator] = (),
        leave: Callable[[], object] | None = None,
        pool: SnapshotPool | None = None,
    ):
        self._tensors, self._buffers, self._generators, self._pool = tensors, buffers, generators, pool
        self._change, self._leave = change, leave

    def __enter__(self) -> None:
        self._states = [g.get_state() for g in self._generators]
        self._snapshots = [self._buffers.snapshot()] if self._buffers else []
        try:
            if self._tensors:
                self._snapshots.append((self._pool or SnapshotPool()).make(self._tensors))
            if self._change is not None:
                with torch.no_grad():
                    self._change()
            if self._tensors:
                torch.clear_autocast_cache()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        if self._leave is not None:
            self._leave()
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        for snapshot in reversed(self._snapshots):
            snapshot.restore()
            snapshot.release()
        if self._tensors:
            torch.clear_autocast_cache()


@contextmanager
def evaluation_mode(*modules: nn.Module, buffers: bool = True) -> Iterator[None]:
    """Switch modules to evaluation mode; then restore every mode, and the buffers that passes changed.

    Without ``buffers`` these are not written to, which the graph of an earlier pass would not survive.
    """
    training = [m for net in modules for m in net.modules() if m.training]
    with Elsewhere([], buffers=Buffers(*modules if buffers else ())):
        try:
            for m in training:
                m.training = False
            yield
        finally:
            for m in training:
                m.training = True


def copy_into(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write each value into its target's own storage."""
    with torch.no_grad():
        for into, source in _by_type(targets, values):
            _copy(into, source)


def _copy(targets: list[Tensor], values: list[Tensor]) -> None:
    if len(targets) == 1:  # a sharded one
        targets[0].copy_(values[0])
    else:
        torch._foreach_copy_(targets, values)


def _choose(targets: Sequence[Tensor], values: Sequence[Tensor], flag: Tensor) -> None:
    """Write the values into their targets where ``flag`` is true, a few million at a time."""
    start = 0
    while start < len(targets):
        end, size = start, 0
        while end < len(targets) and (end == start or size + targets[end].numel() <= _CHUNK):
            size += targets[end].numel()
            end += 1
        into, source = list(targets[start:end]), list(values[start:end])
        old, new = (torch.cat([t.reshape(-1) for t in each]) for each in (source, into))
        parts = torch.split(torch.where(flag, old, new), [t.numel() for t in into])
        _copy(into, [part.view(t.shape) for part, t in zip(parts, into, strict=True)])
        start = end


def _distinct(t: Tensor, target: Tensor) -> Tensor:
    """Return of a tensor the part whose elements have memory of their own in ``target``: of expand(), one row."""
    if target.layout == torch.strided and 0 in target.stride():
        for dim, stride in enumerate(target.stride()):
            if stride == 0 and target.size(dim) > 1:
                t = t.narrow(dim, 0, 1)
    return t


def _by_type(targets: Sequence[Tensor], values: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return targets and values in groups of one type, which a GPU copies in one launch; sharded ones alone."""
    if not PLAIN.issuperset(map(type, targets)):
        return [([target], [value]) for target, value in zip(targets, values, strict=True)]
    groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    for target, value in zip(targets, values, strict=True):
        into, source = groups.setdefault((target.dtype, target.device), ([], []))
        into.append(_distinct(target, target))
        source.append(_distinct(value, target))
    return list(groups.values())


def _copied(entries: Entries) -> Entries:
    """Return copies of plain values; parameters and tensors themselves, whose values are copied apart."""
    return {
        k: v if type(v) in _ATOMIC or isinstance(v, Tensor) or k == "params" else copy.deepcopy(v)
        for k, v in entries.items()
    }


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
