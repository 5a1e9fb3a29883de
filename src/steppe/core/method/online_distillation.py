"""The base class of methods that train several networks, or branches of one, as one module."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, cast

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method.contract import Cost, Method, State, name_of
from steppe.core.model_call import call_model, extract_logits, with_weights
from steppe.core.multi_network import VIEW, MultiNetwork, PeerOutputs, expect_members
from steppe.core.numerics import losses
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.user_loss import function_of

# mean L2 distance of probabilities, or of numbers in their standard deviations, below which members are the same
IDENTICAL = 1e-3


def identical(name: str, members: str) -> str:
    """Return the warning that all members of a method predict the same."""
    return (
        f"{name}: its {members} predict the same, so that it is plain training at a multiple of the cost; "
        "give each a view of its own (data.views), and different initial weights"
    )


@dataclass(frozen=True)
class OnlineDistillation(Method[State], Generic[State]):
    """Several members in one module of the class ``module``; the field ``members`` has their number.

    With one member it is plain training. ``deployed`` names what `predict` returns, among the outputs that the
    module names.
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
        return Method.init(self, net)

    def peers(self, batch: Batch, rt: Runtime, **options: Any) -> PeerOutputs:
        """Return the outputs of all members on a batch, with their graph; each has its own view of it, if any."""
        function_of(rt.options.loss)
        x = cast(MultiNetwork, rt.net).inputs(batch)
        if options:
            x = {**(x if isinstance(x, dict) else {"x": x}), **options}
        return cast(PeerOutputs, call_model(rt.model, x))

    def after(self, batch: Batch, out: StepOutput, state: State, rt: Runtime) -> None:
        """Warn once if all members predict the same after an epoch or two (or 100, 200 steps) with one view."""
        if self.size == 1:
            return
        length = rt.options.epoch or 100
        if VIEW.format(2) not in batch.parts()[0].extra and rt.decide(
            lambda: rt.now.step + 1 in (length, 2 * length)
        ):
            self._warn_if_identical(batch, rt)
        self.finish(batch, state, rt)

    def distillation_loss(self, teacher: Tensor, logits: Tensor, batch: Batch, rt: Runtime) -> Tensor:
        """Return T^2 times the divergence of ``logits`` from ``teacher`` at the method's temperature T."""
        T: float = getattr(self, "T", 1.0)
        return T**2 * rt.divergence(teacher, logits, batch, T)

    def _warn_if_identical(self, batch: Batch, rt: Runtime) -> None:
        net = cast(MultiNetwork, rt.net)
        batch = rt.micro_batches(batch)[0]  # the whole may be too large for the memory, or of several widths
        training = [m for m in net.modules() if m.training]
        net.eval()
        with rt.preserve_state(), torch.no_grad(), rt.precision.autocast():
            outputs = net.named(call_model(net, batch.x))
            form = rt.form_of(outputs[net.names[0]], batch)
        for module in training:
            module.training = True
        members = [form.predictions(outputs[name]) for name in net.names]
        scale = members[0].std(correction=0).clamp(min=1e-12) if form.form == "numbers" else 1.0
        if float(losses.diversity(members) / scale) < IDENTICAL:
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
