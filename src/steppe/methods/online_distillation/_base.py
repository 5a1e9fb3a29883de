"""Base classes of methods that train several networks, or branches of one, as one module."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, cast

import torch
from torch import Tensor, nn

from steppe.core.method import (
    Batch,
    Cost,
    Method,
    Runtime,
    StepOutput,
    call_model,
    extract_logits,
    hyper,
    name_of,
    upcast_to_float32,
    with_weights,
)
from steppe.core.method.contract import State
from steppe.core.method.numerics import losses
from steppe.core.multi_network import MultiNetwork, PeerOutputs
from steppe.models.multi.branched import build_branched
from steppe.models.multi.ensemble import Ensemble
from steppe.models.multi.inputs import VIEW, expect_members, fresh_networks

IDENTICAL = 1e-3  # mean L2 distance of probabilities below which members are the same network


def identical(name: str, members: str) -> str:
    """Return the warning that all members of a method predict the same."""
    return (
        f"{name}: its {members} predict the same, so that it is plain training at a multiple of the cost; "
        "give each a view of its own (data.views), and different initial weights"
    )


@dataclass(frozen=True)
class OnlineDistillation(Method[State], Generic[State]):
    """Several members in one module of the class ``module``; the field ``members`` has their number.

    A method defines ``build_members`` and, if it has a state, ``init_members``. With one member it is plain
    training. ``deployed`` names what `predict` returns, among the outputs that the module names.
    """

    module: ClassVar[type[MultiNetwork]]
    members: ClassVar[str]

    @property
    def size(self) -> int:
        """The number of members."""
        return int(getattr(self, self.members))

    @property
    def deployed(self) -> str:
        """The name of the output that is deployed."""
        raise NotImplementedError

    @property
    def cost(self) -> Cost:
        return Cost(self.size, self.size, 1)

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the module of several members."""
        raise NotImplementedError

    def init_members(self, net: nn.Module) -> State:
        """Return the state with several members."""
        return cast(State, nn.Module())

    def finish(self, batch: Batch, state: State, rt: Runtime) -> None:
        """Update the state of several members after each step that was not skipped."""

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the module of all members, a plain network if there is one."""
        return self.build_members(new_model) if self.size > 1 else new_model()

    def init(self, net: nn.Module) -> State:
        """Return the state; refuse a model that ``build`` did not make."""
        if self.size == 1:
            return cast(State, nn.Module())
        expect_members(net, self.module, self.size, name_of(self), self.members)
        return self.init_members(net)

    def peers(self, batch: Batch, rt: Runtime, **options: Any) -> PeerOutputs:
        """Return the outputs of all members on a batch, with their graph; each has its own view of it, if any."""
        x = cast(MultiNetwork, rt.net).inputs(batch)
        if options:
            x = {**(x if isinstance(x, dict) else {"x": x}), **options}
        return cast(PeerOutputs, call_model(rt.model, x))

    def after(self, batch: Batch, out: StepOutput, state: State, rt: Runtime) -> None:
        """Warn once if all members predict the same after an epoch or two (or 100, 200 steps) with one view."""
        if self.size == 1:
            return
        length = rt.options.epoch or 100
        if VIEW.format(2) not in batch.extra and rt.now.step + 1 in (length, 2 * length):
            self._warn_if_identical(batch, rt)
        self.finish(batch, state, rt)

    def _warn_if_identical(self, batch: Batch, rt: Runtime) -> None:
        net = cast(MultiNetwork, rt.net)
        training = [m for m in net.modules() if m.training]
        net.eval()
        with rt.preserve_state(), torch.no_grad(), rt.precision.autocast():
            outputs = net.named(call_model(net, batch.x))
        for module in training:
            module.training = True
        members = [upcast_to_float32(outputs[name]) for name in net.names]
        if float(losses.diversity(members)) < IDENTICAL:
            rt.once("identical", partial(warnings.warn, identical(name_of(self), self.members), stacklevel=2))

    def predict(self, net: nn.Module, state: State, x: Any) -> Tensor:
        return self.outputs(net, state, x)["deployed"]

    def outputs(self, net: nn.Module, state: State, x: Any) -> dict[str, Tensor]:
        return self.named_outputs(net, x)

    def named_outputs(self, net: nn.Module, x: Any) -> dict[str, Tensor]:
        """Return the logits that the module names, at its weights; 'deployed' are those of ``deployed``."""
        outputs = call_model(net, x)
        if not isinstance(net, MultiNetwork):
            return {"deployed": extract_logits(outputs)}
        named = net.named(outputs)
        return {"deployed": named[self.deployed], **named}

    def deployed_model(self, net: nn.Module, state: State, new_model: Callable[[], nn.Module]) -> nn.Module:
        with self.deployed_weights(net, state):
            if isinstance(net, MultiNetwork):
                return net.extract(self.deployed, new_model)
            return with_weights(new_model(), net.state_dict())


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

    def ramp_up(self, rt: Runtime) -> float:
        """Return r, the weight of the distillation in this step."""
        return losses.sigmoid_rampup(rt.now, self.ramp)

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return self.module(build_branched(new_model, self.branches, self.split_at))
