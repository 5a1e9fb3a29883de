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
Outputs  classes, labels or numbers, of samples
Differs  1. r is the paper's; both codes divide by the weight instead of the ramp's length, which turns
            distillation off from epoch 3 to 80. It rises with every step.
         2. d is the paper's; OKDPH's code always passes step 0, so its mean is the network itself.
         3. branches start from weights of their own; the codes copy the classifiers.
         4. deployed is the first branch of the mean, with its own running statistics (as in the codes).
Start    branches 3, T 3, decay 0.999, ramp 80 of 300 epochs (paper)
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from steppe.core.method import Batch, Cost, Runtime, StepOutput, WeightAverage, call_model, hyper
from steppe.core.method.numerics import losses
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.models.multi.heads import JointBranches


@dataclass(frozen=True)
class PCL(BranchDistillation[WeightAverage]):
    """Train ``branches`` from ``split_at`` on, their joint classifier, and a running mean of all."""

    module = JointBranches

    decay: float = hyper(0.999, "largest d of the mean", minimum=0, below=1)

    @property
    def cost(self) -> Cost:
        return Cost(2 * self.branches, self.branches, 1)

    @property
    def views(self) -> int:
        return self.branches

    def objective(self, batch: Batch, state: WeightAverage, rt: Runtime) -> StepOutput:
        """The losses of branches and joint classifier, and the branches' divergences from it and from the mean."""
        # before the pass of the weights, whose graph a change of them would break
        with rt.rng_restored(), state.training_pass(rt.net):
            zm = call_model(rt.net, cast(JointBranches, rt.net).inputs(batch)).logits
        rt.count(forward=len(batch))
        out, r = self.peers(batch, rt), self.ramp_up(rt)
        z, z_e = out.logits, out.ensemble
        terms = [rt.loss(logits, batch.y) for logits in (*z, z_e)]
        for j, z_j in enumerate(z):
            peers = [self.distillation_loss(t, z_j, batch, rt) for k, t in enumerate(zm) if k != j]
            terms.append(r * (self.distillation_loss(z_e.detach(), z_j, batch, rt) + torch.stack(peers).mean()))
        return StepOutput(losses.total(terms), z[0])

    def finish(self, batch: Batch, state: WeightAverage, rt: Runtime) -> None:
        rt.parallel.share_buffers(state.statistics)  # each process's passes moved its own
        state.update(rt.net, rt.number(lambda: 1 - min(self.decay, 1 - 1 / (state.count + 1))))

    def deployed_weights(self, net: nn.Module, state: WeightAverage) -> AbstractContextManager[None]:
        return state.swapped_in(net) if self.branches > 1 else nullcontext()

    def outputs(self, net: nn.Module, state: WeightAverage, x: Any) -> dict[str, Tensor]:
        """Return the logits of the mean's branches and joint classifier, and those of the weights themselves."""
        own = self.named_outputs(net, x)
        if self.branches == 1:
            return own
        with state.swapped_in(net):
            mean = self.named_outputs(net, x)
        means = {k if k == "deployed" else f"mean's {k}": z for k, z in mean.items()}
        return means | {k: z for k, z in own.items() if k != "deployed"}
