"""On-the-fly native ensemble: branches of one network that learn from their own gated ensemble.

    g(x) = softmax(relu(BN(W h(x)))),   z_e = sum_i g_i z_i,   h the trunk's output, averaged over positions
    w <- U(w, grad [sum_i L(z_i) + L(z_e) + alpha r sum_i T^2 KL(softmax(z_e / T) || softmax(z_i / T))])

r = exp(-5 (1 - t / ramp)^2) rises to 1 over the first ``ramp`` of training. In the KL z_e is a constant.

Paper    Lan, Zhu and Gong, NeurIPS 2018, arXiv:1806.04606, equations 4 to 8
Code     Lan1991Xu/ONE_NeurIPS2018 @ 54afde3; tianlizhang/OKDPH @ a562089
Cost     3 forward, 3 backward, 1 update at most (``branches`` over one trunk)
Limits   branches = 1 is Plain
Differs  1. r rises with every step; the code keeps it constant within an epoch.
         2. detach = False lets the KL's gradient into the ensemble, as OKDPH's code does.
         3. branches start from weights of their own; the code copies one branch's.
         4. any network can be cut, before ``split_at``; the code has a modified copy of each network.
         5. deployed is the first branch; 'ensemble' is the paper's ONE-E.
Start    branches 3, T 3, alpha 1, ramp 80 of 300 epochs (paper; OKDPH's code has 2 branches)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Batch, Runtime, StepOutput, require
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, sigmoid_rampup
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.methods.online_distillation._heads import GatedBranches
from steppe.models.multi.branched import build_branched


@dataclass(frozen=True)
class ONE(BranchDistillation):
    """Train ``branches`` from ``split_at`` on, each also towards the gated ensemble at temperature ``T``."""

    local: ClassVar = "its gate has BatchNorm over the samples of one forward pass"
    module: ClassVar = GatedBranches
    amounts: ClassVar = ("ramp",)

    alpha: float = 1.0
    ramp: float = 0.27
    split_at: str | int = ""
    detach: bool = True

    def check(self) -> None:
        super().check()
        require(self, "alpha", self.alpha >= 0, "a number of at least 0 (1 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return GatedBranches(build_branched(new_model, self.branches, self.split_at))

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of branches and ensemble, and the branches' divergences from the ensemble."""
        if self.branches == 1:
            return rt.supervised(batch)
        *branches, ensemble = call_model(rt.model, batch.x)
        losses = [rt.loss(z, batch.y) for z in (*branches, ensemble)]
        if self.alpha:
            weight = self.alpha * sigmoid_rampup(rt.now, self.ramp)
            teacher = ensemble.detach() if self.detach else ensemble
            losses += [weight * distillation_loss(teacher, z, self.T) for z in branches]
        return StepOutput(torch.stack(losses).sum(), branches[0])
