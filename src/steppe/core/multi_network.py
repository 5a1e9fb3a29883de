"""What is trained in the place of one network: several of them, or branches; and what its passes are worth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from steppe.core.batch import Batch


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

    def relative_cost(self, batch: Batch) -> float:
        """Return how many passes of one plain network one pass of this is worth on ``batch``."""
        return float(self.size)


def member_of(net: nn.Module, params: Sequence[nn.Parameter]) -> list[int]:
    """Return for each parameter the number of its network or branch, from 1; 0 for what several of them share."""
    holders: dict[int, list[int]] = {}
    for number, peer in enumerate(net.members if isinstance(net, MultiNetwork) else (), 1):
        for p in peer.parameters():
            holders.setdefault(id(p), []).append(number)
    return [own[0] if len(own := holders.get(id(p), [])) == 1 else 0 for p in params]
