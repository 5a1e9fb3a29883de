"""A running average of a network, as what a method remembers and deploys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steppe.core.parallel import reshard
from steppe.core.snapshot import CopyPool, copy_into


class WeightAverage(nn.Module):
    """The average of a network's weights and float buffers, and a copy of its integer buffers.

    ``count`` tells how many networks are in it. It is no network itself: to be looked at, it is put in the
    network's place for a while (`in_place_of`), so that it also works where a network cannot be copied, in shards.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.count = 0
        self._copies = CopyPool()
        for i, t in enumerate(_tensors(net)):
            self.register_buffer(str(i), t.detach().clone(memory_format=torch.preserve_format))

    def update(self, net: nn.Module, weight: float) -> None:
        """Move to ``(1 - weight) average + weight net``."""
        with torch.no_grad():
            pairs = list(zip(self._buffers.values(), _tensors(net), strict=True))
            for kind in (True, False):
                own = [a for a, _ in pairs if a is not None and a.is_floating_point() is kind]
                given = [b for _, b in pairs if b.is_floating_point() is kind]
                if own and kind:
                    torch._foreach_lerp_(own, given, weight)
                elif own:
                    torch._foreach_copy_(own, given)
        self.count += 1

    @contextmanager
    def swapped_in(self, net: nn.Module) -> Iterator[None]:
        """Let the network be the average, in evaluation mode; on leaving it is bit for bit what it was."""
        present, copies = _tensors(net), self._copies
        training = [module for module in net.modules() if module.training]
        reshard(net)
        with torch.no_grad():
            with _ordinary():
                kept = copies.make(present)
            try:
                with _ordinary():
                    copy_into(present, list(self.buffers()))
                for module in training:
                    module.training = False
                # autocast keeps what it has cast, and would go on with the other weights
                torch.clear_autocast_cache()
                yield
            finally:
                torch.clear_autocast_cache()
                reshard(net)
                with _ordinary():
                    kept.restore()
                copies.release(kept)
                for module in training:
                    module.training = True

    def get_extra_state(self) -> Tensor:
        """Return the count as a tensor: checkpoints hold nothing else."""
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting."""
        self.count = int(state)


@contextmanager
def _ordinary() -> Iterator[None]:
    """Leave inference mode for a while: what is made in it could not be used again outside of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]
