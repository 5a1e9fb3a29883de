"""Knowledge distillation by collaborative learning: networks that learn from one teacher made of them all.

    w_m <- U(w_m, grad [ce L(w_m) + lam T^2 KL(softmax(t / T) || softmax(z_m / T))]),   t = target(z_1 .. z_N)

    naive      t = z_k of each sample, k the network with the least cross-entropy on it
    linear     t = sum_m a_m z_m, a on the simplex with the least cross-entropy of t over the batch
    min-logit  t_j = min_m (z_mj - z_mc), c the sample's class: the largest gap of any network to each wrong class
    general    t = sum_m a_m z_m, a = C^-1 1 / (1' C^-1 1), C_ij = mean <p_i - y, p_j - y>
    mean       t = sum_m z_m / N

The target is a constant in every gradient.

Paper    Guo et al., CVPR 2020, section 3
Code     none by the authors; tianlizhang/OKDPH @ a562089 has the mean, which is not in the paper
Cost     2 forward, 2 backward, 1 update (one of each of ``networks``)
Limits   networks = 1 is Plain; lam = 0, ce = 1 is Plain for each network
Outputs  classes of samples; target = mean also takes labels, numbers and positions
Differs  1. linear and general take the samples of one forward pass; the paper estimates the weights of general
            once an epoch on held-out data, and does not say over which samples it solves linear.
         2. general adds a ridge of 1e-6 times the mean of C's diagonal, and its weights may be negative.
         3. networks see the same image unless the loader gives views; the paper gives each its own.
         4. deployed is the first network; the others are reported too.
         5. samples without a class (ignore_index) are left out of target and KL; the KL of target = mean has them.
Start    networks 2, target mean, T 4, ce 0.5, lam 0.5 (OKDPH's code)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steppe.core.method import (
    Batch,
    InputError,
    Runtime,
    StepOutput,
    autocast_disabled,
    hyper,
    upcast_to_float32,
)
from steppe.core.method.numerics import losses
from steppe.methods.online_distillation._base import EnsembleDistillation


@dataclass(frozen=True)
class KDCL(EnsembleDistillation):
    """Train ``networks`` on the labels, times ``ce``, and towards their ``target``, times ``lam``."""

    target: str = hyper("mean", "how the teacher is made", choices=losses.KDCL_TARGETS)
    T: float = hyper(4.0, "temperature", above=0)
    ce: float = hyper(0.5, "weight of the labels", minimum=0)
    lam: float = hyper(0.5, "weight of the teacher", minimum=0)

    @property
    def local(self) -> str:
        weighs = self.target in ("linear", "general")
        return "its target weighs networks by the samples of one forward pass" if weighs else ""

    @property
    def on_host(self) -> str:
        return "its target 'linear' stops when it has converged" if self.target == "linear" else ""

    def objective(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """The sum of all networks' losses, and of their divergences from the target."""
        logits = self.peers(batch, rt).logits
        terms = [self.ce * rt.loss(z, batch.y) for z in logits]
        if self.lam:
            stacked = torch.stack([upcast_to_float32(z.detach()) for z in logits])
            t, students = stacked.mean(0), list(logits)
            weight: Any = self.lam
            if self.target != "mean":
                y = self._classes(stacked, batch, rt)
                with autocast_disabled(stacked):
                    t, rows = losses.KDCL_TARGETS[self.target](stacked, y), y.any(1, keepdim=True)
                # samples without a class add 0, and do not count in the mean
                t, *students = (torch.where(rows, z, 0.0) for z in (t, *students))
                weight = self.lam * (len(y) / rows.sum(dtype=y.dtype).clamp(min=1))
            terms += [weight * self.distillation_loss(t, z, batch, rt) for z in students]
        return StepOutput(losses.total(terms), logits[0])

    def _classes(self, z: Tensor, batch: Batch, rt: Runtime) -> Tensor:
        """Return the samples' classes as probabilities (B, K), with rows of zeros where there is none."""
        if z.ndim != 3 or (form := rt.form_of(z[0], batch)).form != "classes":
            raise InputError(
                f"kdcl: target is {self.target!r}, which needs the class of each sample; give target='mean'"
            )
        return losses.one_hot(batch.y, z[0], form.ignored)
