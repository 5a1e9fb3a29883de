"""What deep mutual learning and its alternating form share: the loss of one network."""

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
class MutualDistillation(EnsembleDistillation):
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
