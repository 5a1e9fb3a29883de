"""On-the-fly native ensemble: branches of one network that learn from their own gated ensemble.

    g(x) = softmax(relu(BN(W h(x)))),   z_e = sum_i g_i z_i,   h the trunk's output, meant over positions
    w <- U(w, grad [sum_i L(z_i) + L(z_e) + alpha r sum_i T^2 KL(softmax(z_e / T) || softmax(z_i / T))])

r = exp(-5 (1 - t / ramp)^2) rises to 1 over the first ``ramp`` of training. In the KL z_e is a constant.

Paper    Lan, Zhu and Gong, NeurIPS 2018, arXiv:1806.04606, equations 4 to 8
Code     Lan1991Xu/ONE_NeurIPS2018 @ 54afde3; tianlizhang/OKDPH @ a562089
Cost     3 forward, 3 backward, 1 update at most (``branches`` over one trunk)
Limits   branches = 1 is Plain
Differs  1. r rises with every step; the code holds it for each epoch.
         2. detach = False lets the KL's gradient into the ensemble, as OKDPH's code does.
         3. branches start from weights of their own; the code copies one branch's.
         4. any network can be cut, before ``split_at``; the code has each network written anew.
         5. deployed is the first branch; 'ensemble' is the paper's ONE-E.
Start    branches 3, T 3, alpha 1, ramp 80 of 300 epochs (paper; OKDPH's code has 2 branches)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method, name_of, require, with_presets
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, sigmoid_rampup
from steppe.core.runtime import Runtime, StepOutput
from steppe.errors import InputError
from steppe.models.multi.base import MultiHeadNetwork
from steppe.models.multi.branched import BranchedNetwork, branch_outputs, build_branched
from steppe.models.multi.inputs import expect_views


class Gated(MultiHeadNetwork):
    """Branches and the gate that weighs them; called, it returns their logits and last the ensemble's."""

    def __init__(self, body: BranchedNetwork):
        super().__init__(body)
        if not body.entry:
            raise InputError(
                f"split_at is {body.split_at!r}, whose module does not say how many channels it takes; name one "
                "that begins with a convolution, a dense layer or a norm"
            )
        gate = nn.Sequential(nn.Linear(body.entry, body.size), nn.BatchNorm1d(body.size), nn.ReLU())
        self.gate = gate.to(next(body.parameters()))

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Return the logits (B, classes) of each branch, and of the ensemble."""
        said = self.body(x, views=views, **named)
        if said.entered.shape[1] != self.body.entry:
            raise InputError(
                f"split_at is {self.body.split_at!r}, which is given {said.entered.shape[1]} channels and begins "
                f"with a layer of {self.body.entry}; name a module further on"
            )
        g = torch.softmax(upcast_to_float32(self.gate(said.entered.to(self.gate[0].weight.dtype))), 1)
        z = torch.stack([upcast_to_float32(z) for z in said.logits], 1)
        return (*said.logits, (g[:, :, None] * z).sum(1))


@dataclass(frozen=True)
class ONE(Method):
    """Train ``branches`` from ``split_at`` on, and pull each towards the gated ensemble at temperature ``T``."""

    limit: ClassVar = {"branches": 1}
    cost: ClassVar = (3, 3, 1)
    local: ClassVar = "its gate has BatchNorm over the samples of one forward pass"
    whole: ClassVar = "its trunk ends in the middle of a pass, which sharding does not know"

    branches: int = 3
    T: float = 3.0
    alpha: float = 1.0
    ramp: float = 0.27
    split_at: str | int = ""
    detach: bool = True

    def check(self) -> None:
        """Branches is a number, T a temperature, alpha a weight, ramp a part of training."""
        require(self, "branches", self.branches >= 1, "at least 1 (3 is usual)")
        object.__setattr__(self, "cost", (self.branches, self.branches, 1))
        require(self, "T", self.T > 0, "a number above 0 (3 is usual)")
        require(self, "alpha", self.alpha >= 0, "a number of at least 0 (1 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return branches with a gate, the network itself if one branch is wanted."""
        if self.branches == 1:
            return new_model()
        return Gated(build_branched(new_model, self.branches, self.split_at))

    def init(self, net: nn.Module) -> nn.Module:
        """Remember nothing; refuse a model that was not built for this."""
        if self.branches > 1:
            expect_views(net, Gated, self.branches, name_of(self), "branches")
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of branches and ensemble, and the branches' pulls."""
        if self.branches == 1:
            return rt.supervised(batch)
        *branches, ensemble = call_model(rt.model, batch.x)
        losses = [rt.loss(z, batch.y) for z in (*branches, ensemble)]
        if self.alpha:
            weight = self.alpha * sigmoid_rampup(rt.now, self.ramp)
            teacher = ensemble.detach() if self.detach else ensemble
            losses += [weight * distillation_loss(teacher, z, self.T) for z in branches]
        return StepOutput(torch.stack(losses).sum(), branches[0])

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the first branch."""
        return self.outputs(net, state, x)["deployed"]

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy trunk and first branch alone."""
        if isinstance(net, Gated):
            return net.plain(0, new_model)
        return with_presets(new_model(), net.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report each branch, their mean and the gated ensemble."""
        return branch_outputs(net, x, Gated, "ensemble")
