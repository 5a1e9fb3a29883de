"""Branches or networks under something that joins what they say: a gate, a fusion, attention, a classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from steppe.core.batch import Batch
from steppe.core.multi_network import MultiNetwork
from steppe.models.multi.branched import BranchedNetwork, SeparateNetworks
from steppe.models.multi.inputs import views_of
from steppe.models.multi.shared_trunk import work


class MultiHeadNetwork(MultiNetwork):
    """``body`` and what a method puts on it; called, it returns the logits of the branches first.

    ``views`` tells whether branches see views of their own, if the loader gives them.
    """

    views = False

    def __init__(self, body: BranchedNetwork | SeparateNetworks):
        super().__init__()
        self.body = body

    @property
    def size(self) -> int:
        """How many branches or networks there are."""
        return self.body.size

    @property
    def members(self) -> nn.ModuleList:
        """The branches, or the networks."""
        return self.body.networks if isinstance(self.body, SeparateNetworks) else self.body.branches

    def relative_cost(self, batch: Batch) -> float:
        """Return the multiply-adds of a pass of all, over those of trunk and first branch alone."""
        if isinstance(self.body, SeparateNetworks) or any(
            m._compiled_call_impl is not None for m in self.modules()
        ):
            return float(self.size)
        given = views_of(batch, self.size) if self.views else batch.x
        alone = work(self, batch.x, [self.body.trunk, self.body.branches[0]])[1]
        return work(self, given)[0] / alone if alone else float(self.size)

    def plain(self, number: int, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one branch, and of the trunk under it."""
        return self.body.plain(number, new_model)
