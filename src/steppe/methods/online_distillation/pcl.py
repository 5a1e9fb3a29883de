"""Peer collaborative learning: branches learn from a classifier of all their features and from each other's mean.

    z_e = W concat(f_1 .. f_n) + b,   zm_j what branch j of the running mean v of all weights says about view j
    w <- U(w, grad [L(z_e) + sum_j (L(z_j) + r T^2 KL(z_e, z_j) + r / (n - 1) sum_(l != j) T^2 KL(zm_l, z_j))])
    v <- d v + (1 - d) w,   d = min(decay, 1 - 1 / (s + 1)) after the s-th update, s from 0

KL(a, b) stands for KL(softmax(a / T) || softmax(b / T)), a a constant; r = exp(-5 (1 - t / ramp)^2) rises to 1.
Branch j sees view j if the loader gives views; the trunk then runs once per view.

Paper    Wu and Gong, AAAI 2021, arXiv:2006.04147, equations 2 to 8
Code     shaoeric/Peer-Collaborative-Learning-for-Online-Knowledge-Distillation @ 6afb473 (not by the authors);
         tianlizhang/OKDPH @ a562089
Cost     6 forward, 3 backward, 1 update at most (``branches`` over one trunk; the mean needs no backward)
Limits   branches = 1 is Plain
Differs  1. r is the paper's; both codes divide by the weight instead of the ramp's length, which turns
            distillation off from epoch 3 to 80. It rises with every step.
         2. d is the paper's; OKDPH's code passes step 0 for ever, so its mean is the network itself.
         3. the mean is evaluated with averaged running statistics; the codes keep it in training mode with
            statistics of its own.
         4. branches start from weights of their own; the codes copy the classifiers.
         5. deployed is the first branch of the mean.
Start    branches 3, T 3, decay 0.999, ramp 80 of 300 epochs (paper)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import Method, name_of, require, with_presets
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, sigmoid_rampup
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.state.weight_average import WeightAverage
from steppe.models.multi.base import MultiHeadNetwork
from steppe.models.multi.branched import BranchedNetwork, branch_outputs, build_branched
from steppe.models.multi.inputs import expect_views, views_of


class Joined(MultiHeadNetwork):
    """Branches and the classifier of their joined features; called, it returns the logits of all, its own last."""

    views = True

    def __init__(self, body: BranchedNetwork):
        super().__init__(body)
        self.classifier = nn.Linear(body.size * body.width, body.classes).to(next(body.parameters()))

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Return the logits (B, classes) of each branch, and of the joint classifier."""
        said = self.body(x, views=views, **named)
        features = torch.cat(said.features, 1)
        return (*said.logits, self.classifier(features.to(self.classifier.weight.dtype)))


@dataclass(frozen=True)
class PCL(Method):
    """Train ``branches`` from ``split_at`` on, their joint classifier, and a running mean of all."""

    limit: ClassVar = {"branches": 1}
    cost: ClassVar = (6, 3, 1)
    whole: ClassVar = "its trunk ends in the middle of a pass, which sharding does not know"

    branches: int = 3
    T: float = 3.0
    decay: float = 0.999
    ramp: float = 0.27
    split_at: str | int = ""

    def check(self) -> None:
        """Branches is a number, T a temperature, decay a share, ramp a part of training."""
        require(self, "branches", self.branches >= 1, "at least 1 (3 is usual)")
        object.__setattr__(self, "cost", (2 * self.branches, self.branches, 1))
        require(self, "T", self.T > 0, "a number above 0 (3 is usual)")
        require(self, "decay", 0 <= self.decay < 1, "a number from 0 to below 1 (0.999 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")

    @property
    def views(self) -> int:
        """One for each branch."""
        return self.branches

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return branches with a joint classifier, the network itself if one branch is wanted."""
        if self.branches == 1:
            return new_model()
        return Joined(build_branched(new_model, self.branches, self.split_at))

    def init(self, net: nn.Module) -> nn.Module:
        """Start the mean from the initial weights; refuse a model that was not built for this."""
        if self.branches == 1:
            return nn.Module()
        expect_views(net, Joined, self.branches, name_of(self), "branches")
        return WeightAverage(net)

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of branches and joint classifier, and what joint classifier and mean teach the branches."""
        if self.branches == 1:
            return rt.supervised(batch)
        assert isinstance(state, WeightAverage)
        given = views_of(batch, self.branches)
        # before the pass of the weights, whose graph a change of them would break
        with state.swapped_in(rt.net):
            *past, _ = call_model(rt.net, given)
        rt.count(forward=len(batch))
        *branches, joint = call_model(rt.model, given)
        losses = [rt.loss(z, batch.y) for z in (*branches, joint)]
        weight = sigmoid_rampup(rt.now, self.ramp)
        for j, z in enumerate(branches):
            peers = [distillation_loss(t, z, self.T) for k, t in enumerate(past) if k != j]
            losses.append(weight * (distillation_loss(joint.detach(), z, self.T) + torch.stack(peers).mean()))
        return StepOutput(torch.stack(losses).sum(), branches[0])

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Take in the new weights."""
        if isinstance(state, WeightAverage):
            state.update(rt.net, 1 - min(self.decay, 1 - 1 / (state.count + 1)))

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the first branch of the mean."""
        return self.outputs(net, state, x)["deployed"]

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy the mean's trunk and first branch alone."""
        if not isinstance(net, Joined) or not isinstance(state, WeightAverage):
            return with_presets(new_model(), net.state_dict())
        with state.swapped_in(net):
            return net.plain(0, new_model)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report the mean's branches and joint classifier, and the weights' own."""
        own = branch_outputs(net, x, Joined, "ensemble")
        if not isinstance(state, WeightAverage):
            return own
        with state.swapped_in(net):
            mean = branch_outputs(net, x, Joined, "ensemble")
        return (
            {"deployed": mean["deployed"]}
            | {f"mean's {k}": z for k, z in mean.items() if k != "deployed"}
            | {k: z for k, z in own.items() if k != "deployed"}
        )
