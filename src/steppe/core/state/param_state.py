"""Tensors that a method keeps between steps for those of a network, by name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from steppe.core import param_groups
from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.core.snapshot import all_alike, copy_into


class TensorCopies(nn.Module):
    """Copies of named tensors, as buffers that checkpoints save."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self._names: list[str] = []
        self.match(tensors)

    def match(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the copy of each tensor; it starts anew where a tensor was added or has another shape."""
        copies = list(self.buffers(recurse=False))
        if self._names == list(tensors) and all_alike(copies, list(tensors.values())):
            return copies
        before = dict(zip(self._names, copies, strict=True))
        self._names = list(tensors)
        self._buffers.clear()
        for i, (name, t) in enumerate(tensors.items()):
            old = before.get(name)
            value = self.initial(t) if old is None or old.shape != t.shape else old
            self.register_buffer(str(i), torch.empty_like(t, requires_grad=False).copy_(value))
        return list(self.buffers(recurse=False))

    def initial(self, t: Tensor) -> Tensor:
        """Return the first value of the copy of a tensor."""
        return t.detach()


class ParamState(TensorCopies):
    """One buffer per parameter of a network, in the order of registration, zero at first; checkpoints save it.

    ``writes`` counts how often it was written.
    """

    def __init__(self, net: nn.Module):
        super().__init__(dict(net.named_parameters()))
        self.writes = 0
        self._of: tuple[nn.Parameter, ...] = ()
        self._places: list[str] = []

    def initial(self, t: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(t)

    def read(self, params: Sequence[nn.Parameter], net: nn.Module) -> Vec:
        """Return the stored tensors of these parameters."""
        if not param_groups.same(params, self._of):
            names = {id(p): name for name, p in net.named_parameters()}
            outside = [p for p in params if id(p) not in names]  # exchanged ones that the optimizer still has
            tensors = dict(net.named_parameters()) | {f"outside {i}": p for i, p in enumerate(outside)}
            self.match(tensors)
            where = {id(p): str(i) for i, p in enumerate(tensors.values())}
            self._of, self._places = tuple(params), [where[id(p)] for p in params]
        return [self._buffers[place] for place in self._places]

    def write(self, params: Sequence[nn.Parameter], net: nn.Module, values: Vec) -> None:
        """Store values; a parameter without a value keeps its stored one."""
        pairs = [(s, v) for s, v in zip(self.read(params, net), values, strict=True) if v is not None]
        copy_into([s for s, _ in pairs if s is not None], [v for _, v in pairs])
        self.writes += 1

    def approach(self, params: Sequence[nn.Parameter], net: nn.Module, values: Vec, weight: float) -> None:
        """Store ``(1 - weight) stored + weight values``; a parameter without a value counts as zero."""
        stored = vector.present(self.read(params, net))
        ends = [torch.zeros_like(s) if v is None else v for s, v in zip(stored, values, strict=True)]
        with torch.no_grad():
            torch._foreach_lerp_(stored, ends, weight)
        self.writes += 1

    def get_extra_state(self) -> Tensor:
        """Return the count as a tensor, for checkpoints."""
        return torch.tensor(self.writes)

    def set_extra_state(self, state: Tensor) -> None:
        """Load the count."""
        self.writes = int(state)
