"""Branches or networks with a module on top that combines their outputs: a gate, a fusion, attention."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.multi_network import MultiNetwork, PeerOutputs
from steppe.core.numerics.losses import mean_of
from steppe.models.multi.branched import BranchedNetwork, SeparateNetworks
from steppe.models.multi.inputs import views_of
from steppe.models.multi.shared_trunk import count_flops


class MultiHeadNetwork(MultiNetwork):
    """``body`` and what a method puts on top of it, whose logits are called ``head``.

    ``views`` tells whether each branch gets a view of its own, if the loader gives them.
    """

    views = False
    head = "ensemble"

    def __init__(self, body: BranchedNetwork | SeparateNetworks):
        super().__init__()
        self.body = body

    @property
    def size(self) -> int:
        """The number of branches or networks."""
        return self.body.size

    @property
    def members(self) -> nn.ModuleList:
        """The branches, or the networks."""
        return self.body.networks if isinstance(self.body, SeparateNetworks) else self.body.branches

    @property
    def names(self) -> list[str]:
        """'branch 1', 'branch 2', ..., or 'network 1', ..."""
        kind = "network" if isinstance(self.body, SeparateNetworks) else "branch"
        return [f"{kind} {i}" for i in range(1, self.size + 1)]

    def named(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Return the logits of each branch, their mean, and those of the head."""
        named = dict(zip(self.names, outputs.logits, strict=True)) | {"mean": mean_of(outputs.logits)}
        return named if outputs.ensemble is None else named | {self.head: outputs.ensemble}

    def inputs(self, batch: Batch) -> Any:
        """Return a view for each branch if it gets one of its own, else the batch's inputs."""
        return views_of(batch, self.size) if self.views else batch.x

    def relative_cost(self, batch: Batch) -> float:
        """Return the multiply-adds of a forward pass of all, over those of trunk and first branch alone."""
        if isinstance(self.body, SeparateNetworks) or any(
            m._compiled_call_impl is not None for m in self.modules()
        ):
            return float(self.size)
        inputs = self.inputs(batch)
        single = count_flops(self, batch.x, [self.body.trunk, self.body.branches[0]])[1]
        return count_flops(self, inputs)[0] / single if single else float(self.size)

    def extract(self, name: str, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one branch and of the trunk."""
        return self.body.plain(self.names.index(name), new_model)
