"""The module that is trained in the place of one network: several of them, or branches."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from steppe.core.batch import Batch
from steppe.core.numerics.complex_params import leaf


class MultiNetwork(nn.Module):
    """Base of the modules that methods of several networks build."""

    @property
    def size(self) -> int:
        """How many networks or branches there are."""
        raise NotImplementedError

    @property
    def members(self) -> nn.ModuleList:
        """The networks or branches."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> Any:
        """Return what a pass on ``batch`` is called with: its inputs, or a view of them for each network."""
        return batch.x

    def relative_cost(self, batch: Batch) -> float:
        """Return the cost of one forward pass on ``batch``, in passes of a single network."""
        return float(self.size)


def inputs_for(net: nn.Module, batch: Batch) -> Any:
    """Return what a network, or several, are called with on ``batch``."""
    return net.inputs(batch) if isinstance(net, MultiNetwork) else batch.x


def member_of(net: nn.Module, params: Sequence[nn.Parameter]) -> list[int]:
    """Return for each parameter the number of its network or branch, from 1; 0 for what several of them share."""
    holders: dict[int, list[int]] = {}
    for number, one in enumerate(net.members if isinstance(net, MultiNetwork) else (), 1):
        for p in one.parameters():
            holders.setdefault(id(p), []).append(number)
    return [own[0] if len(own := holders.get(id(leaf(p)), [])) == 1 else 0 for p in params]
