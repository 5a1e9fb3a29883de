"""Feature fusion learning: a classifier fused from the branches' feature maps, and branches, teach each other.

    F = P(concat(F_1 .. F_n)),   z_f = W mean(F) + b,   P depthwise 3x3, BN, ReLU, pointwise 1x1, BN, ReLU
    w <- U(w, grad [sum_i L(z_i) + L(z_f) + r (sum_i T^2 KL(z_f, z_i) + T^2 KL(mean_i z_i, z_f))])

KL(a, b) stands for KL(softmax(a / T) || softmax(b / T)), a a constant; r = exp(-5 (1 - t / ramp)^2) rises to 1.

Paper    Kim et al., ICPR 2020, arXiv:1904.09058, equations 3 to 8
Code     Jangho-Kim/FFL-pytorch @ 546d478; tianlizhang/OKDPH @ a562089
Cost     2 forward, 2 backward, 1 update at most (``branches`` over one trunk), and the fusion
Limits   branches = 1 is Plain
Differs  1. one optimizer; the code has a second one for the fusion, with weight decay 1e-5 instead of 1e-4. Give
            the parameters of ``model.fusion`` a group of their own for that.
         2. r rises with every step; the code keeps it constant within an epoch.
         3. maps are the last ones with as many channels as the classifier takes; without any, the features, as
            maps of one position. DenseNet's are thus taken after its last BatchNorm and ReLU.
         4. branches share nothing but the trunk: OKDPH's code shares a classifier in VGG16, a block in DenseNet.
         5. deployed is the first branch; 'fused' is the fused classifier.
Start    branches 2, T 3, ramp 80 of 300 epochs (code)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Batch, Runtime, StepOutput, require
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, mean_of, sigmoid_rampup
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.methods.online_distillation._heads import FusedBranches
from steppe.models.multi.branched import build_branched


@dataclass(frozen=True)
class FFL(BranchDistillation):
    """Train ``branches`` from ``split_at`` on and a fusion of their maps, at temperature ``T``."""

    cost: ClassVar = (2, 2, 1)
    local: ClassVar = "its fusion has BatchNorm over the samples of one forward pass"
    module: ClassVar = FusedBranches
    head: ClassVar = "fused"
    amounts: ClassVar = ("ramp",)

    branches: int = 2
    ramp: float = 0.27
    split_at: str | int = ""

    def check(self) -> None:
        super().check()
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return FusedBranches(build_branched(new_model, self.branches, self.split_at))

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of branches and fusion, and their divergences from each other."""
        if self.branches == 1:
            return rt.supervised(batch)
        *branches, fused = call_model(rt.model, batch.x)
        losses = [rt.loss(z, batch.y) for z in (*branches, fused)]
        weight = sigmoid_rampup(rt.now, self.ramp)
        losses += [weight * distillation_loss(fused.detach(), z, self.T) for z in branches]
        losses.append(weight * distillation_loss(mean_of(branches).detach(), fused, self.T))
        return StepOutput(torch.stack(losses).sum(), branches[0])
