"""Tensors that a method keeps between steps for those of a network, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core import param_groups
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import leaf, real_view
from steppe.core.numerics.vector import Vec
from steppe.core.state.snapshot import copy_into


class TensorCopies(nn.Module):
    """Copies of named tensors, as buffers that checkpoints save; on ``device``, by default each tensor's own."""

    content = "a vector of weights"

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | None = None):
        super().__init__()
        self.device = device
        self._names: list[str] = []
        self.match(tensors)

    def match(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the copy of each tensor; it starts anew where a tensor was added or has another shape."""
        copies = list(self.buffers(recurse=False))
        if self._names == list(tensors) and self._fit(copies, list(tensors.values())):
            return copies
        before = dict(zip(self._names, copies, strict=True))
        self._names = list(tensors)
        self._buffers.clear()
        for i, (name, t) in enumerate(tensors.items()):
            old = before.get(name)
            value = self.initial(t) if old is None or old.shape != t.shape else old
            empty = torch.empty_like(t, dtype=self.dtype_of(t), requires_grad=False, device=self.device)
            self.register_buffer(str(i), empty.copy_(value))
        return list(self.buffers(recurse=False))

    def _fit(self, copies: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
        # a module that is moved takes its buffers with it
        return len(copies) == len(tensors) and all(
            c.shape == t.shape and c.dtype == self.dtype_of(t) and c.device == (self.device or t.device)
            for c, t in zip(copies, tensors, strict=True)
        )

    def dtype_of(self, t: Tensor) -> torch.dtype:
        """Return the type of the copy of a tensor."""
        return t.dtype

    def initial(self, t: Tensor) -> Tensor:
        """Return the first value of the copy of a tensor."""
        return t.detach()


class StoredVector:
    """The vector of a `ParamState` as its attribute: reading returns the stored tensors, assigning writes them."""

    def __get__(self, state: ParamState, owner: type[ParamState]) -> Vec:
        return state.read()

    def __set__(self, state: ParamState, values: Vec) -> None:
        state.write(values)


class ParamState(nn.Module):
    """A vector of parameter space that a method keeps between steps: a buffer per parameter, zero at first.

    A subclass names it, ``mean = ParamState.Vector()``; then ``state.mean`` reads it and ``state.mean = values``
    writes it. Checkpoints save it by the names of the parameters. Parameters of the optimizer that are not in the
    network (those of a loss) are numbered in its order. A parameter that is new, as after a head was exchanged,
    starts at zero; one that is gone is forgotten. ``writes`` counts how often it was written.
    """

    Vector = StoredVector
    content = "a vector of weights"

    def __init__(self, net: nn.Module):
        super().__init__()
        params = list(net.parameters())
        # what the optimizer trains, and the network; a step sets it
        self.trained: Callable[[], tuple[Sequence[nn.Parameter], nn.Module]] = lambda: (params, net)
        self.writes = 0
        self._last: tuple[nn.Parameter, ...] = ()
        self._names: list[str] = []
        self._owners: dict[str, nn.Parameter] = {}  # none after loading: buffers are then found by name
        self._claim((), net)

    def read(self) -> Vec:
        """Return the stored tensors of the optimizer's parameters."""
        params, net = self.trained()
        if not param_groups.same(params, self._last):
            self._claim(params, net)
            names = {id(p): name for name, p in self._owners.items()}
            self._last, self._names = tuple(params), [names[id(leaf(p))] for p in params]
        return [self._buffers[name] for name in self._names]

    def _claim(self, params: Sequence[nn.Parameter], net: nn.Module) -> None:
        """Have a buffer for each parameter of the network and each of ``params``."""
        named = {f"net/{name.replace('.', '/')}": p for name, p in net.named_parameters()}
        inside, leaves = {id(p) for p in named.values()}, map(leaf, params)
        named |= {f"extra/{i}": p for i, p in enumerate(p for p in leaves if id(p) not in inside)}
        before = dict(self._buffers)
        owned = {id(p): before.pop(name) for name, p in self._owners.items()}
        self._buffers.clear()
        for name, p in named.items():
            stored, like = owned.get(id(p), before.get(name)), real_view(p.detach())
            if stored is None or stored.shape != like.shape:
                stored = torch.zeros_like(like)
            self.register_buffer(name, stored.to(like))
        self._owners = named

    def write(self, values: Vec) -> None:
        """Store values; a parameter without a value keeps its stored one."""
        pairs = [(s, v) for s, v in zip(self.read(), values, strict=True) if v is not None]
        copy_into([s for s, _ in pairs if s is not None], [v for _, v in pairs])
        self.writes += 1

    def assign(self, values: Vec) -> None:
        """Store values; a parameter without a value gets zero."""
        pairs = zip(self.read(), values, strict=True)
        self.write([torch.zeros_like(s) if v is None and s is not None else v for s, v in pairs])

    def approach(self, values: Vec, weight: float | Tensor) -> None:
        """Store ``(1 - weight) stored + weight values``; a parameter without a value counts as zero."""
        stored = vector.present(self.read())
        ends = [torch.zeros_like(s) if v is None else v for s, v in zip(stored, values, strict=True)]
        with torch.no_grad():
            vector.approach(stored, ends, weight)
        self.writes += 1

    def get_extra_state(self) -> Tensor:
        """Return the count as a tensor, for checkpoints."""
        return torch.tensor(self.writes)

    def set_extra_state(self, state: Tensor) -> None:
        """Load the count."""
        self.writes = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Have the buffers that were saved, whichever parameters there were."""
        names = [k.removeprefix(prefix) for k in state_dict if k.startswith((f"{prefix}net/", f"{prefix}extra/"))]
        for name in [name for name in self._buffers if name not in names]:
            del self._buffers[name]
        for name in names:
            saved, own = state_dict[prefix + name], self._buffers.get(name)
            if own is None or own.shape != saved.shape:
                self.register_buffer(name, torch.zeros_like(saved))
        self._last, self._owners = (), {}
        super()._load_from_state_dict(state_dict, prefix, *rest)
