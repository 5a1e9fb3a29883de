"""On-the-fly native ensemble: branches of one network that learn from their own gated ensemble.

    g(x) = softmax(relu(BN(W h(x)))),   z_e = sum_i g_i z_i,   h the trunk's output, averaged over positions
    w <- U(w, grad [sum_i L(z_i) + L(z_e) + alpha r sum_i T^2 KL(softmax(z_e / T) || softmax(z_i / T))])

r = exp(-5 (1 - t / ramp)^2) rises to 1 over the first ``ramp`` of training. In the KL z_e is a constant.

Paper    Lan, Zhu and Gong, NeurIPS 2018, arXiv:1806.04606, equations 4 to 8
Code     Lan1991Xu/ONE_NeurIPS2018 @ 54afde3; tianlizhang/OKDPH @ a562089
Cost     3 forward, 3 backward, 1 update at most (``branches`` over one trunk)
Limits   branches = 1 is Plain
Outputs  classes, labels or numbers, of samples or positions; not of fully convolutional networks
Differs  1. r rises with every step; the code keeps it constant within an epoch.
         2. detach = False lets the KL's gradient into the ensemble, as OKDPH's code does.
         3. branches start from weights of their own; the code copies one branch's.
         4. any network can be cut, before ``split_at``; the code has a modified copy of each network.
         5. deployed is the first branch; 'ensemble' is the paper's ONE-E.
Start    branches 3, T 3, alpha 1, ramp 80 of 300 epochs (paper; OKDPH's code has 2 branches)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Runtime, StepOutput, hyper
from steppe.core.method.numerics import losses
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.models.multi.heads import GatedBranches


@dataclass(frozen=True)
class ONE(BranchDistillation):
    """Train ``branches`` from ``split_at`` on, each also towards the gated ensemble at temperature ``T``."""

    module = GatedBranches
    local = "its gate has BatchNorm over the samples of one forward pass"

    alpha: float = hyper(1.0, "weight of the distillation", minimum=0)
    detach: bool = hyper(True, "the teacher is a constant")

    def objective(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """The losses of branches and ensemble, and the branches' divergences from the ensemble."""
        out = self.peers(batch, rt)
        z, z_e = out.logits, out.ensemble
        terms = [rt.loss(logits, batch.y) for logits in (*z, z_e)]
        if self.alpha:
            weight = self.alpha * self.ramp_up(rt)
            teacher = z_e.detach() if self.detach else z_e
            terms += [weight * self.distillation_loss(teacher, z_i, batch, rt) for z_i in z]
        return StepOutput(losses.total(terms), z[0])
