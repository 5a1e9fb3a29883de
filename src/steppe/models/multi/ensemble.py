"""Several whole networks that are trained together as one module, whose forward pass returns all their logits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.model_call import call_model, extract_logits
from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics.losses import mean_of
from steppe.models.multi.inputs import inputs_of, views_of


class NetworkList(MultiNetwork):
    """Several whole networks; a forward pass returns a tuple of logits that begins with theirs."""

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

    def inputs(self, batch: Batch) -> Any:
        """Return a view for each network, if the batch has several."""
        return views_of(batch, self.size)


class Ensemble(NetworkList):
    """Networks that are called with one input for all, or with ``views``, one for each.

    The result is a tuple of logits (B, classes), in the order of ``networks``.
    """

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Return the logits of each network."""
        inputs = inputs_of(self.size, x, views, named)
        return tuple(extract_logits(call_model(net, v)) for net, v in zip(self.networks, inputs, strict=True))


def network_outputs(net: nn.Module, x: Any, last: str = "") -> dict[str, Tensor]:
    """Return by name the logits of each network and of their ensemble; 'deployed' is the first network.

    ``last`` names the module's last output, if that is no network of its own. A single network only has
    'deployed'.
    """
    outputs = call_model(net, x)
    if not isinstance(net, NetworkList):
        return {"deployed": extract_logits(outputs)}
    named = {"deployed": outputs[0]}
    named |= {f"network {m}": z for m, z in enumerate(outputs[: net.size], 1)}
    named["ensemble"] = mean_of(outputs[: net.size])
    return named | ({last: outputs[-1]} if last else {})
