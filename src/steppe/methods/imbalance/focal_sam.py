"""Focal-SAM: sharpness that counts more for classes with few samples.

    w <- U(w, grad L(w) - grad L_a(w) + grad L_a(w + e)),   e = rho g_a / |g_a|,   g_a = grad L_a(w)
    L_a = sum_c a_c L_c,   a_c = lam (1 - n_c / n)^gamma,   L_c the terms of class c, with n_c of n samples

Paper    Li et al., ICML 2025, arXiv:2505.01660
Code     scongl/Focal-SAM @ 6421f4c
Cost     3 forward, 3 backward, 1 update
Limits   lam = 0 or rho = 0 is Plain; lam = 1 with gamma = 0 is SAM
Agrees   7e-16
Differs  1. the gradients of L and of L_a at w are two passes; in the authors' code they share the forward pass.
         2. the sizes of the classes are those of the training data in steppe train; in a loop of your own they are
            counted from the batches so far, unless method.observe_targets(step.state, y) gives all classes (N,).
         3. mixed targets (mixup, CutMix) count in each class by their share.
         4. running statistics come from the clean pass only; the authors' code counts both.
Start    rho 0.2, gamma 3, lam 0.5 (CIFAR-10-LT, imbalance 100); rho 0.3, gamma 3.2, lam 0.8 (CIFAR-100-LT):
         authors' script, with the logit-adjusted loss
"""

from dataclasses import dataclass

from torch import Tensor

from steppe.core.method import ScheduleValue, hyper
from steppe.methods.imbalance._base import ClassWeightedSAM


@dataclass(frozen=True)
class FocalSAM(ClassWeightedSAM):
    """Add the sharpness at distance ``rho``, that of class c with weight ``lam`` (1 - n_c / n)^``gamma``."""

    rho: ScheduleValue = hyper(0.2, "radius of the ball", minimum=0, plain_at=0)
    gamma: float = hyper(3.0, "how much more small classes count", minimum=0, usual="1.5 to 5.5")
    lam: float = hyper(0.5, "weight of the sharpness", minimum=0, plain_at=0)

    def class_weights(self, counts: Tensor) -> Tensor:
        """Return a, lam for all classes before any sample is counted."""
        share = counts / counts.sum().clamp(min=1)
        return self.lam * (1 - share) ** self.gamma
