"""Deep mutual learning: networks that learn from the labels and from each other.

    w_m <- U(w_m, grad [L(w_m) + lam / (N - 1) sum_(l != m) T^2 KL(softmax(z_l / T) || softmax(z_m / T))])

z_l is what network l says about the batch, a constant in the gradient of network m.

Paper    Zhang et al., CVPR 2018, arXiv:1706.00384, equations 5 to 9
Code     YingZhangDUT/Deep-Mutual-Learning @ 34a2058 (TensorFlow, re-identification only)
Cost     2 forward, 2 backward, 1 update (one of each of ``networks``)
Limits   networks = 1 is Plain; lam = 0 is Plain for each network
Differs  1. all networks are updated at once from one forward pass each, as in OKDPH's code; in algorithm 1 of the
            paper each is updated before the next one looks (dml-alternating), and the authors' code gives each
            another batch.
         2. the mean over peers is that of the paper's equation 8; the authors' code sums.
         3. networks see the same image unless the loader gives views; OKDPH's code gives each its own crop.
         4. deployed is the first network, the others are reported beside it; the papers report the best.
Start    networks 2, T 1, lam 1 (paper)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.batch import Batch
from steppe.core.model_call import call_model
from steppe.core.runtime import Runtime, StepOutput
from steppe.methods.online_distillation._mutual import Mutual
from steppe.models.multi.inputs import views_of


@dataclass(frozen=True)
class DML(Mutual):
    """Train ``networks`` on the labels and, times ``lam``, towards each other at temperature ``T``."""

    cost: ClassVar = (2, 2, 1)

    def check(self) -> None:
        """As all mutual learning; a pass is one of each network."""
        super().check()
        object.__setattr__(self, "cost", (self.networks, self.networks, 1))

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The sum of all networks' losses and pulls; no gradient crosses from one to another."""
        if self.networks == 1:
            return rt.supervised(batch)
        said = call_model(rt.model, views_of(batch, self.networks))
        losses = [self.lesson(m, said, batch.y, rt) for m in range(self.networks)]
        return StepOutput(torch.stack(losses).sum(), said[0])
