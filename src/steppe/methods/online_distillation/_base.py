"""Base classes of methods that train several networks, or branches of one, as one module."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.method import Batch, Method, Runtime, StepOutput, name_of, require, with_weights
from steppe.core.numerics.losses import diversity
from steppe.models.multi.base import MultiHeadNetwork
from steppe.models.multi.branched import branch_outputs
from steppe.models.multi.ensemble import Ensemble, network_outputs
from steppe.models.multi.inputs import VIEW, expect_members, fresh_networks

IDENTICAL = 1e-3  # mean L2 distance of probabilities below which members are the same network


def identical(name: str, members: str) -> str:
    """Return the warning that all members of a method predict the same."""
    return (
        f"{name}: its {members} predict the same, so that it is plain training at a multiple of the cost; "
        "give each a view of its own (data.views), and different initial weights"
    )


@dataclass(frozen=True)
class OnlineDistillation(Method):
    """Several members in one module, of the class ``module``; the field ``members`` has their number.

    `outputs` names what can be evaluated; its entry 'deployed' is what `predict` returns.
    """

    module: ClassVar[type[nn.Module]]
    members: ClassVar[str]

    @property
    def size(self) -> int:
        """The number of members; with one the method is plain training."""
        return int(getattr(self, self.members))

    def check(self) -> None:
        """The number of members; a pass is one of each member."""
        usual = getattr(type(self), self.members)
        require(self, self.members, self.size >= 1, f"at least 1 ({usual} is usual)")
        object.__setattr__(self, "cost", (self.size, self.size, 1))

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the module of all members, a plain network if there is one."""
        return self.build_members(new_model) if self.size > 1 else new_model()

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the module of several members."""
        raise NotImplementedError

    def init(self, net: nn.Module) -> nn.Module:
        """Keep no state; refuse a model that ``build`` did not make."""
        if self.size > 1:
            expect_members(net, self.module, self.size, name_of(self), self.members)
        return nn.Module()

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Warn once if all members predict the same after an epoch or two (or 100, 200 steps) with one view."""
        length = rt.options.epoch or 100
        if self.size == 1 or VIEW.format(2) in batch.extra or rt.now.step + 1 not in (length, 2 * length):
            return
        training = [m for m in rt.net.modules() if m.training]
        rt.net.eval()
        with rt.preserve_state(), torch.no_grad(), rt.precision.autocast():
            outputs = self.outputs(rt.net, state, batch.x)
        for module in training:
            module.training = True
        members = [upcast_to_float32(z) for name, z in outputs.items() if name.startswith(("network ", "branch "))]
        if float(diversity(members)) < IDENTICAL:
            rt.once("identical", partial(warnings.warn, identical(name_of(self), self.members), stacklevel=2))

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        return self.outputs(net, state, x)["deployed"]


@dataclass(frozen=True)
class EnsembleDistillation(OnlineDistillation):
    """Whole networks, each with a view of its own if the loader makes several; the first is deployed."""

    limit: ClassVar = {"networks": 1}
    cost: ClassVar = (2, 2, 1)
    module: ClassVar = Ensemble
    members: ClassVar = "networks"

    networks: int = 2

    @property
    def views(self) -> int:
        return self.networks

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return Ensemble(fresh_networks(new_model, self.networks))

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        first = net.networks[0] if isinstance(net, Ensemble) else net
        return with_weights(new_model(), first.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        return network_outputs(net, x)


@dataclass(frozen=True)
class BranchDistillation(OnlineDistillation):
    """Branches of one network under a head, whose own logits are called ``head``; the first branch is deployed."""

    limit: ClassVar = {"branches": 1}
    cost: ClassVar = (3, 3, 1)
    whole: ClassVar = "its trunk ends in the middle of a pass, which sharding does not know"
    members: ClassVar = "branches"
    head: ClassVar[str] = "ensemble"

    branches: int = 3
    T: float = 3.0

    def check(self) -> None:
        super().check()
        require(self, "T", self.T > 0, "a number above 0 (3 is usual)")

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        if isinstance(net, MultiHeadNetwork):
            return net.plain(0, new_model)
        return with_weights(new_model(), net.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Return the logits of each branch, their mean, and those of the head."""
        return branch_outputs(net, x, self.module, self.head)
