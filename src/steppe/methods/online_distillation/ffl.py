"""Feature fusion learning: a classifier fused from the branches' feature maps, and branches, teach each other.

    F = P(concat(F_1 .. F_n)),   z_f = W mean(F) + b,   P depthwise 3x3, BN, ReLU, pointwise 1x1, BN, ReLU
    w <- U(w, grad [sum_i L(z_i) + L(z_f) + r (sum_i T^2 KL(z_f, z_i) + T^2 KL(mean_i z_i, z_f))])

KL(a, b) stands for KL(softmax(a / T) || softmax(b / T)), a a constant; r = exp(-5 (1 - t / ramp)^2) rises to 1.

Paper    Kim et al., ICPR 2020, arXiv:1904.09058, equations 3 to 8
Code     Jangho-Kim/FFL-pytorch @ 546d478; tianlizhang/OKDPH @ a562089
Cost     2 forward, 2 backward, 1 update at most (``branches`` over one trunk), and the fusion
Limits   branches = 1 is Plain
Outputs  classes, labels or numbers, of samples
Differs  1. one optimizer; the code has a second one for the fusion, with weight decay 1e-5 instead of 1e-4. Give
            the parameters of ``model.fusion`` a group of their own for that.
         2. r rises with every step; the code keeps it constant within an epoch.
         3. maps are the last ones with as many channels as the classifier takes; without any, the features, as
            maps of one position. DenseNet's are thus taken after its last BatchNorm and ReLU.
         4. branches share nothing but the trunk: OKDPH's code shares a classifier in VGG16, a block in DenseNet.
         5. deployed is the first branch; 'fused' is the fused classifier.
Start    branches 2, T 3, ramp 80 of 300 epochs (code)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Runtime, StepOutput, hyper
from steppe.core.method.numerics import losses
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.models.multi.heads import FusedBranches


@dataclass(frozen=True)
class FFL(BranchDistillation):
    """Train ``branches`` from ``split_at`` on and a fusion of their maps, at temperature ``T``."""

    module = FusedBranches
    local = "its fusion has BatchNorm over the samples of one forward pass"

    branches: int = hyper(2, "branches over one trunk", minimum=1, plain_at=1)

    def objective(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """The losses of branches and fusion, and their divergences from each other."""
        out, r = self.peers(batch, rt), self.ramp_up(rt)
        z, z_f = out.logits, out.ensemble
        terms = [rt.loss(logits, batch.y) for logits in (*z, z_f)]
        terms += [r * self.distillation_loss(z_f.detach(), z_i, batch, rt) for z_i in z]
        terms.append(r * self.distillation_loss(losses.mean_of(z).detach(), z_f, batch, rt))
        return StepOutput(losses.total(terms), z[0])
