"""Peer collaborative learning: branches learn from a classifier of all their features and from each other's mean.

    z_e = W concat(f_1 .. f_n) + b,   zm_j the logits of branch j of the running mean v of all weights on view j
    w <- U(w, grad [L(z_e) + sum_j (L(z_j) + r T^2 KL(z_e, z_j) + r / (n - 1) sum_(l != j) T^2 KL(zm_l, z_j))])
    v <- d v + (1 - d) w,   d = min(decay, 1 - 1 / (s + 1)) after the s-th update, s from 0

The mean runs in training mode, and its passes move running statistics of its own. KL(a, b) stands for
KL(softmax(a / T) || softmax(b / T)), a a constant; r = exp(-5 (1 - t / ramp)^2) rises to 1. Branch j sees view j
if the loader gives views; the trunk then runs once per view.

Paper    Wu and Gong, AAAI 2021, arXiv:2006.04147, equations 2 to 8
Code     shaoeric/Peer-Collaborative-Learning-for-Online-Knowledge-Distillation @ 6afb473 (not by the authors);
         tianlizhang/OKDPH @ a562089
Cost     6 forward, 3 backward, 1 update at most (``branches`` over one trunk; the mean needs no backward)
Limits   branches = 1 is Plain
Differs  1. r is the paper's; both codes divide by the weight instead of the ramp's length, which turns
            distillation off from epoch 3 to 80. It rises with every step.
         2. d is the paper's; OKDPH's code always passes step 0, so its mean is the network itself.
         3. branches start from weights of their own; the codes copy the classifiers.
         4. deployed is the first branch of the mean, with its own running statistics (as in the codes).
Start    branches 3, T 3, decay 0.999, ramp 80 of 300 epochs (paper)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.method import Batch, Runtime, StepOutput, require
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, sigmoid_rampup
from steppe.core.state.weight_average import WeightAverage
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.methods.online_distillation._heads import JointBranches
from steppe.models.multi.branched import build_branched
from steppe.models.multi.inputs import views_of


@dataclass(frozen=True)
class PCL(BranchDistillation):
    """Train ``branches`` from ``split_at`` on, their joint classifier, and a running mean of all."""

    cost: ClassVar = (6, 3, 1)
    module: ClassVar = JointBranches
    amounts: ClassVar = ("ramp",)

    decay: float = 0.999
    ramp: float = 0.27
    split_at: str | int = ""

    def check(self) -> None:
        super().check()
        object.__setattr__(self, "cost", (2 * self.branches, self.branches, 1))
        require(self, "decay", 0 <= self.decay < 1, "a number from 0 to below 1 (0.999 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")

    @property
    def views(self) -> int:
        return self.branches

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return JointBranches(build_branched(new_model, self.branches, self.split_at))

    def init(self, net: nn.Module) -> nn.Module:
        """Start the mean from the initial weights; refuse a model that ``build`` did not make."""
        state = super().init(net)
        return WeightAverage(net) if self.branches > 1 else state

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of branches and joint classifier, and the branches' divergences from it and from the mean."""
        if self.branches == 1:
            return rt.supervised(batch)
        assert isinstance(state, WeightAverage)
        inputs = views_of(batch, self.branches)
        # before the pass of the weights, whose graph a change of them would break
        with rt.rng_restored(), state.training_pass(rt.net):
            *means, _ = call_model(rt.net, inputs)
        rt.count(forward=len(batch))
        *branches, joint = call_model(rt.model, inputs)
        losses = [rt.loss(z, batch.y) for z in (*branches, joint)]
        weight = sigmoid_rampup(rt.now, self.ramp)
        for j, z in enumerate(branches):
            peers = [distillation_loss(t, z, self.T) for k, t in enumerate(means) if k != j]
            losses.append(weight * (distillation_loss(joint.detach(), z, self.T) + torch.stack(peers).mean()))
        return StepOutput(torch.stack(losses).sum(), branches[0])

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        super().after(batch, out, state, rt)
        if isinstance(state, WeightAverage):
            rt.parallel.share_buffers(state.statistics)  # each process's passes moved its own
            state.update(rt.net, 1 - min(self.decay, 1 - 1 / (state.count + 1)))

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        return state.swapped_in(net) if isinstance(state, WeightAverage) else nullcontext()

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        with self.deployed_weights(net, state):
            return super().deployed_model(net, state, new_model)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Return the logits of the mean's branches and joint classifier, and those of the weights themselves."""
        own = super().outputs(net, state, x)
        if not isinstance(state, WeightAverage):
            return own
        with state.swapped_in(net):
            mean = super().outputs(net, state, x)
        return (
            {"deployed": mean["deployed"]}
            | {f"mean's {k}": z for k, z in mean.items() if k != "deployed"}
            | {k: z for k, z in own.items() if k != "deployed"}
        )
