"""Deep mutual learning: networks that learn from the labels and from each other.

    w_m <- U(w_m, grad [L(w_m) + lam / (N - 1) sum_(l != m) T^2 KL(softmax(z_l / T) || softmax(z_m / T))])

z_l are the logits of network l, a constant in the gradient of network m.

Paper    Zhang et al., CVPR 2018, arXiv:1706.00384, equations 5 to 9
Code     YingZhangDUT/Deep-Mutual-Learning @ 34a2058 (TensorFlow, re-identification only)
Cost     2 forward, 2 backward, 1 update (one of each of ``networks``)
Limits   networks = 1 is Plain; lam = 0 is Plain for each network
Differs  1. all networks are updated at once from one forward pass each, as in OKDPH's code; in algorithm 1 of the
            paper each is updated before the next one's pass (dml-alternating), and the authors' code gives each
            another batch.
         2. the mean over peers is that of the paper's equation 8; the authors' code sums.
         3. networks see the same image unless the loader gives views; OKDPH's code gives each its own crop.
         4. deployed is the first network, the others are reported too; the papers report the best.
Start    networks 2, T 1, lam 1 (paper)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steppe.core.method import Batch, Runtime, StepOutput, require
from steppe.core.model_call import call_model
from steppe.core.numerics.losses import distillation_loss
from steppe.methods.online_distillation._base import EnsembleDistillation
from steppe.models.multi.inputs import views_of


@dataclass(frozen=True)
class DML(EnsembleDistillation):
    """Train ``networks`` on the labels and, times ``lam``, towards each other at temperature ``T``."""

    lam: float = 1.0
    T: float = 1.0

    def check(self) -> None:
        super().check()
        require(self, "lam", self.lam >= 0, "a number of at least 0 (1 is usual)")
        require(self, "T", self.T > 0, "a number above 0 (1 is usual)")

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The sum of all networks' losses; no gradient flows from one network to another."""
        if self.networks == 1:
            return rt.supervised(batch)
        logits = call_model(rt.model, views_of(batch, self.networks))
        losses = [self.network_loss(m, logits, batch.y, rt) for m in range(self.networks)]
        return StepOutput(torch.stack(losses).sum(), logits[0])

    def network_loss(self, m: int, logits: Sequence[Tensor], y: Tensor, rt: Runtime) -> Tensor:
        """Supervised loss of network m plus lam times its mean KL to the other networks' detached predictions."""
        loss = rt.loss(logits[m], y)
        if not self.lam:
            return loss
        divergences = [distillation_loss(z.detach(), logits[m], self.T) for k, z in enumerate(logits) if k != m]
        return loss + self.lam * torch.stack(divergences).mean()
