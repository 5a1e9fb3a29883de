"""The loss of mutual learning, which its simultaneous and its alternating form share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.core.method import require
from steppe.core.runtime import Runtime
from steppe.methods.online_distillation._base import EnsembleDistillation
from steppe.models.multi.inputs import distillation_loss


@dataclass(frozen=True)
class Mutual(EnsembleDistillation):
    """``networks`` learn from the labels and, times ``lam``, from each other at temperature ``T``."""

    lam: float = 1.0
    T: float = 1.0

    def check(self) -> None:
        """Networks is a number, lam a weight, T a temperature."""
        super().check()
        require(self, "lam", self.lam >= 0, "a number of at least 0 (1 is usual)")
        require(self, "T", self.T > 0, "a number above 0 (1 is usual)")

    def network_loss(self, m: int, logits: Sequence[Tensor], y: Tensor, rt: Runtime) -> Tensor:
        """Supervised loss of network m plus lam times its mean KL to the other networks' detached predictions."""
        loss = rt.loss(logits[m], y)
        if not self.lam:
            return loss
        divergences = [distillation_loss(z.detach(), logits[m], self.T) for k, z in enumerate(logits) if k != m]
        return loss + self.lam * torch.stack(divergences).mean()
