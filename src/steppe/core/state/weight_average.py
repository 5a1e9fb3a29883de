"""A running average of a network's weights and running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steppe.core.data_parallel import reshard
from steppe.core.snapshot import SnapshotPool, copy_into


class WeightAverage(nn.Module):
    """The average of a network's weights and float buffers, and a copy of its integer buffers.

    ``count`` is the number of networks in it. It is not a network itself: to be evaluated, its tensors are copied
    into the network for a while (`swapped_in`), so that it also works where a network cannot be copied, in shards.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.count = 0
        self._snapshots = SnapshotPool()
        for i, t in enumerate(_tensors(net)):
            self.register_buffer(str(i), t.detach().clone(memory_format=torch.preserve_format))

    def update(self, net: nn.Module, weight: float) -> None:
        """Move to ``(1 - weight) average + weight net``."""
        with torch.no_grad():
            pairs = list(zip(self._buffers.values(), _tensors(net), strict=True))
            for kind in (True, False):
                own = [a for a, _ in pairs if a is not None and a.is_floating_point() is kind]
                new = [b for _, b in pairs if b.is_floating_point() is kind]
                if own and kind:
                    torch._foreach_lerp_(own, new, weight)
                elif own:
                    torch._foreach_copy_(own, new)
        self.count += 1

    @contextmanager
    def swapped_in(self, net: nn.Module) -> Iterator[None]:
        """Give the network the average's tensors, in evaluation mode; on leaving it is bit for bit what it was."""
        present = _tensors(net)
        training = [module for module in net.modules() if module.training]
        reshard(net)
        with torch.no_grad():
            with _no_inference_mode():
                before = self._snapshots.make(present)
            try:
                with _no_inference_mode():
                    copy_into(present, list(self.buffers()))
                for module in training:
                    module.training = False
                # autocast caches what it has cast, and would go on with the other weights
                torch.clear_autocast_cache()
                yield
            finally:
                torch.clear_autocast_cache()
                reshard(net)
                with _no_inference_mode():
                    before.restore()
                self._snapshots.release(before)
                for module in training:
                    module.training = True

    def get_extra_state(self) -> Tensor:
        """Return the count as a tensor, for checkpoints."""
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        """Load the count."""
        self.count = int(state)


@contextmanager
def _no_inference_mode() -> Iterator[None]:
    """Leave inference mode for a while: a tensor made in it could not be written to outside of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]
