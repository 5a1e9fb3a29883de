"""ImbSAM: SAM for the classes with few samples only, a plain gradient for the others.

    w <- U(w, grad L_head(w) + grad L_tail(w + e)),   e = rho g_t / |g_t|,   g_t = grad L_tail(w)
    L = L_head + L_tail, the terms of the samples of large and of small classes

Paper    Zhou et al., ICCV 2023, arXiv:2308.07815
Code     cool-xuan/Imbalanced_SAM @ c65f41e
Cost     3 forward, 3 backward, 1 update
Limits   rho = 0 is Plain; where every class is small it is SAM
Agrees   6e-13 with their class, 2e-13 without BatchNorm; with their script see 5
Differs  1. a class is small with fewer samples than small times the mean class; the authors list the classes.
         2. the gradients of L and of L_tail at w are two passes; in their code they share the forward pass.
         3. the sizes of the classes are those of the training data in steppe train; in a loop of your own they are
            counted from the batches so far, unless method.observe_targets(step.state, y) gives all classes (N,).
         4. mixed targets (mixup, CutMix) count in each class by their share.
         5. their script doubles L_tail in both of its passes: with that, weights differ by 1.2 of their length.
         6. running statistics come from the clean pass only; the authors' code counts both.
Start    rho 0.05 (authors' class), small 1
"""

from dataclasses import dataclass

from torch import Tensor

from steppe.core.method import hyper
from steppe.methods.imbalance._base import ClassWeightedSAM


@dataclass(frozen=True)
class ImbSAM(ClassWeightedSAM):
    """SAM at distance ``rho`` for classes smaller than ``small`` times the mean class."""

    small: float = hyper(1.0, "largest size of a small class, relative to the mean class", above=0)

    def class_weights(self, counts: Tensor) -> Tensor:
        """Return 1 for small classes, else 0."""
        return (counts < self.small * counts.mean()).to(counts)
