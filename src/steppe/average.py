"""A running average of a network, as what a method remembers and deploys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steppe.ranks import reshard


class Average(nn.Module):
    """The average of a network's weights and float buffers, and a copy of its integer buffers.

    ``count`` tells how many networks are in it. It is no network itself: to be looked at, it is put in the
    network's place for a while (`in_place_of`), so that it also works where a network cannot be copied, in shards.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.count = 0
        for i, t in enumerate(_tensors(net)):
            self.register_buffer(str(i), t.clone(memory_format=torch.preserve_format))

    def take_in(self, net: nn.Module, weight: float) -> None:
        """Move to ``(1 - weight) average + weight net``."""
        pairs = list(zip(self.buffers(), _tensors(net), strict=True))
        with torch.no_grad():
            floats = [(a, b) for a, b in pairs if a.is_floating_point()]
            torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], weight)
            for a, b in pairs:
                if not a.is_floating_point():
                    a.copy_(b)
        self.count += 1

    @contextmanager
    def in_place_of(self, net: nn.Module) -> Iterator[None]:
        """Let the network be the average, in evaluation mode; on leaving it is bit for bit what it was."""
        present = _tensors(net)
        training = [module for module in net.modules() if module.training]
        reshard(net)
        with torch.no_grad():
            kept = [t.clone(memory_format=torch.preserve_format) for t in present]
            try:
                for t, a in zip(present, self.buffers(), strict=True):
                    t.copy_(a)
                for module in training:
                    module.training = False
                # autocast keeps what it has cast, and would go on with the other weights
                torch.clear_autocast_cache()
                yield
            finally:
                torch.clear_autocast_cache()
                reshard(net)
                for t, before in zip(present, kept, strict=True):
                    t.copy_(before)
                for module in training:
                    module.training = True

    def get_extra_state(self) -> Tensor:
        """Return the count as a tensor: checkpoints hold nothing else."""
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting."""
        self.count = int(state)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*net.parameters(), *net.buffers())]
