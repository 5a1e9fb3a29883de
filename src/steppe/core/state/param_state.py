"""A vector in parameter space that a method keeps between steps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steppe.core import param_groups
from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.core.snapshot import copy_into


class ParamState(nn.Module):
    """One buffer per parameter of a network, in the order of registration, zero at first; checkpoints save it.

    ``writes`` counts how often it was written.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.writes = 0
        self._of: tuple[nn.Parameter, ...] = ()
        self._names: list[str] = []
        for i, p in enumerate(net.parameters()):
            self.register_buffer(str(i), torch.zeros_like(p, requires_grad=False))

    def read(self, params: Sequence[nn.Parameter], net: nn.Module) -> Vec:
        """Return the stored tensors of these parameters."""
        if not param_groups.same(params, self._of):
            where = {id(p): str(i) for i, p in enumerate(net.parameters())}
            self._of, self._names = tuple(params), [where[id(p)] for p in params]
        return [self._buffers[name] for name in self._names]

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
