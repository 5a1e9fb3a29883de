"""The two kinds of online distillation: whole networks, and branches of one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from torch import nn

from steppe.core.method import OnlineDistillation, Runtime, State, hyper
from steppe.core.method.numerics import losses
from steppe.models.multi.branched import build_branched
from steppe.models.multi.ensemble import Ensemble
from steppe.models.multi.inputs import fresh_networks


@dataclass(frozen=True)
class EnsembleDistillation(OnlineDistillation):
    """Whole networks, each with a view of its own if the loader makes several; the first is deployed."""

    module = Ensemble
    members = "networks"
    deployed = "network 1"

    networks: int = hyper(2, "networks that are trained together", minimum=1, plain_at=1)

    @property
    def views(self) -> int:
        return self.networks

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return Ensemble(fresh_networks(new_model, self.networks))


@dataclass(frozen=True)
class BranchDistillation(OnlineDistillation[State], Generic[State]):
    """Branches of one network under a head, the class ``module``; the first branch is deployed."""

    members = "branches"
    deployed = "branch 1"

    branches: int = hyper(3, "branches over one trunk", minimum=1, plain_at=1)
    T: float = hyper(3.0, "temperature", above=0)
    ramp: float = hyper(
        0.27,
        "when the distillation has its full weight",
        minimum=0,
        amount=True,
        remedy="a number of steps, or a share of the training below 1",
    )
    split_at: str | int = hyper("", "the module that branches begin with; a number is a part of a sequence")

    @property
    def whole(self) -> str:
        return "its trunk ends in the middle of a pass, which sharding does not know"

    def ramp_up(self, rt: Runtime) -> Any:
        """Return r, the weight of the distillation in this step."""
        return rt.number(lambda: losses.sigmoid_rampup(rt.now, self.ramp))

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return self.module(build_branched(new_model, self.branches, self.split_at))
