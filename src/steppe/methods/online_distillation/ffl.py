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
         2. r rises with every step; the code holds it for each epoch.
         3. maps are the last ones with as many channels as the classifier takes; without any, the features, as
            maps of one position. DenseNet's are thus taken after its last BatchNorm and ReLU.
         4. branches are all of their own: OKDPH's code shares one classifier in VGG16, one block in DenseNet.
         5. deployed is the first branch; 'fused' is the fused classifier.
Start    branches 2, T 3, ramp 80 of 300 epochs (code)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.amp import autocast_disabled
from steppe.core.batch import Batch
from steppe.core.method import Method, name_of, require, with_presets
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss, mean_of, sigmoid_rampup
from steppe.core.runtime import Runtime, StepOutput
from steppe.models.multi.base import MultiHeadNetwork
from steppe.models.multi.branched import BranchedNetwork, branch_outputs, build_branched
from steppe.models.multi.inputs import expect_views


class Fused(MultiHeadNetwork):
    """Branches and their fusion; called, it returns the branches' logits and last the fused classifier's."""

    def __init__(self, body: BranchedNetwork):
        super().__init__(body)
        wide, width = body.size * body.width, body.width
        fusion = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, body.classes),
        )
        self.fusion = fusion.to(next(body.parameters()))

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Return the logits (B, classes) of each branch, and of the fused classifier."""
        said = self.body(x, views=views, **named)
        maps = torch.cat(said.maps, 1)
        with autocast_disabled(maps):  # BatchNorm of few values makes gradients that fp16 cannot hold
            return (*said.logits, self.fusion(maps.to(next(self.fusion.parameters()).dtype)))


@dataclass(frozen=True)
class FFL(Method):
    """Train ``branches`` from ``split_at`` on and a fusion of their maps, at temperature ``T``."""

    limit: ClassVar = {"branches": 1}
    cost: ClassVar = (2, 2, 1)
    local: ClassVar = "its fusion has BatchNorm over the samples of one forward pass"
    whole: ClassVar = "its trunk ends in the middle of a pass, which sharding does not know"

    branches: int = 2
    T: float = 3.0
    ramp: float = 0.27
    split_at: str | int = ""

    def check(self) -> None:
        """Branches is a number, T a temperature, ramp a part of training."""
        require(self, "branches", self.branches >= 1, "at least 1 (2 is usual)")
        object.__setattr__(self, "cost", (self.branches, self.branches, 1))
        require(self, "T", self.T > 0, "a number above 0 (3 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return branches with their fusion, the network itself if one branch is wanted."""
        if self.branches == 1:
            return new_model()
        return Fused(build_branched(new_model, self.branches, self.split_at))

    def init(self, net: nn.Module) -> nn.Module:
        """Remember nothing; refuse a model that was not built for this."""
        if self.branches > 1:
            expect_views(net, Fused, self.branches, name_of(self), "branches")
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of branches and fusion, and what they teach each other."""
        if self.branches == 1:
            return rt.supervised(batch)
        *branches, fused = call_model(rt.model, batch.x)
        losses = [rt.loss(z, batch.y) for z in (*branches, fused)]
        weight = sigmoid_rampup(rt.now, self.ramp)
        losses += [weight * distillation_loss(fused.detach(), z, self.T) for z in branches]
        losses.append(weight * distillation_loss(mean_of(branches).detach(), fused, self.T))
        return StepOutput(torch.stack(losses).sum(), branches[0])

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the first branch."""
        return self.outputs(net, state, x)["deployed"]

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy trunk and first branch alone."""
        if isinstance(net, Fused):
            return net.plain(0, new_model)
        return with_presets(new_model(), net.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report each branch, their mean and the fused classifier."""
        return branch_outputs(net, x, Fused, "fused")
