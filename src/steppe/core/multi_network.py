"""The module that is trained in the place of one network: several of them, or branches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.numerics.complex_params import leaf
from steppe.errors import InputError

VIEW = "view {}"  # names of the further views of a batch's samples, from 2 on


class PeerOutputs(NamedTuple):
    """What one forward pass of several networks or branches returns, all of shape (B, classes).

    Attributes:
        logits: Those of each member.
        ensemble: Those of what is made of all members, such as gated branches or the hybrid; None without it.
        targets: What members are to learn from, if the module makes it.
    """

    logits: tuple[Tensor, ...]
    ensemble: Any = None
    targets: tuple[Tensor, ...] = ()


class MultiNetwork(nn.Module):
    """Base of the modules that methods of several networks build; a forward pass returns `PeerOutputs`."""

    @property
    def size(self) -> int:
        """How many networks or branches there are."""
        raise NotImplementedError

    @property
    def members(self) -> nn.ModuleList:
        """The networks or branches."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """The names of the members that are compared with each other, as in `named`."""
        return [f"network {i}" for i in range(1, self.size + 1)]

    def named(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Return by name the logits of all that can be evaluated: members and what is made of them."""
        raise NotImplementedError

    def extract(self, name: str, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a plain network from ``new_model`` with the weights of the member of this name."""
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


def expect_members(net: nn.Module, kind: type[nn.Module], count: int, name: str, field: str) -> None:
    """Raise InputError unless ``net`` is what the method builds, with ``count`` networks or branches."""
    size = getattr(net, "size", None)
    if not isinstance(net, kind):
        raise InputError(
            f"{name} trains several networks and was bound to {type(net).__name__}; "
            f"bind what it builds: model = {name}(...).build(make_model)"
        )
    if size != count:
        raise InputError(f"{name}: {field} is {count} and the model was built with {size}; give both the same")
