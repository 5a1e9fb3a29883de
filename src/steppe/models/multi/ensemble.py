"""Several whole networks that are trained together as one module, whose forward pass returns all their logits."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import with_weights
from steppe.core.model_call import call_for_logits
from steppe.core.multi_network import MultiNetwork, PeerOutputs
from steppe.core.numerics.losses import mean_of
from steppe.models.multi.inputs import inputs_of, of_one_shape, views_of


class Ensemble(MultiNetwork):
    """Networks that are called with one input for all, or with ``views``, one for each."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @property
    def size(self) -> int:
        """The number of networks."""
        return len(self.networks)

    @property
    def members(self) -> nn.ModuleList:
        """The networks."""
        return self.networks

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> PeerOutputs:
        """Return the logits of each network."""
        inputs = inputs_of(self.size, x, views, named)
        logits = [call_for_logits(net, v) for net, v in zip(self.networks, inputs, strict=True)]
        return PeerOutputs(of_one_shape(logits))

    def named(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Return the logits of each network, and their mean ('ensemble')."""
        return {**dict(zip(self.names, outputs.logits, strict=True)), "ensemble": mean_of(outputs.logits)}

    def extract(self, name: str, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one of these."""
        return with_weights(new_model(), self.networks[self.names.index(name)].state_dict())

    def inputs(self, batch: Batch) -> Any:
        """Return a view for each network, if the batch has several."""
        return views_of(batch, self.size)
