"""A vector in parameter space that a method remembers between steps, as buffers: resume comes for free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steppe.vec import Vec


class Memory(nn.Module):
    """One buffer per parameter of a network, in the order of its registration, zero at first.

    ``writes`` counts how often it was written.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.writes = 0
        for i, p in enumerate(net.parameters()):
            self.register_buffer(str(i), torch.zeros_like(p, requires_grad=False))

    def read(self, params: Sequence[nn.Parameter], net: nn.Module) -> Vec:
        """Return what is remembered of these parameters."""
        where = self._places(net)
        return [self.get_buffer(where[id(p)]) for p in params]

    def write(self, params: Sequence[nn.Parameter], net: nn.Module, values: Vec) -> None:
        """Remember; a parameter without a value keeps what it had."""
        where = self._places(net)
        with torch.no_grad():
            for p, v in zip(params, values, strict=True):
                if v is not None:
                    self.get_buffer(where[id(p)]).copy_(v)
        self.writes += 1

    def get_extra_state(self) -> Tensor:
        """Return the count as a tensor: checkpoints hold nothing else."""
        return torch.tensor(self.writes)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting."""
        self.writes = int(state)

    @staticmethod
    def _places(net: nn.Module) -> dict[int, str]:
        return {id(p): str(i) for i, p in enumerate(net.parameters())}
