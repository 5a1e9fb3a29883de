"""Adaptive sharpness-aware minimisation: SAM in a ball that is measured relative to the weights.

    w <- U(w, grad L(w + e)),   e = rho T^2 g / |T g|,   g = grad L(w),   T = |w| + eta for weights, 1 for biases

Paper    Kwon et al., ICML 2021, arXiv:2102.11600, equation 5
Code     SamsungLabs/ASAM @ f156a68; davda54/sam @ 3c3afdb (adaptive = True)
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain
Differs  1. a weight is what its module calls so; the authors' code looks for 'weight' in the full name.
         2. scaling = 'all' is davda54's form: T = |w| for every parameter (eta is not used). Zero weights are
            then never perturbed. Its best rho is about four times larger.
         3. running statistics come from the clean pass only; the authors' code counts both.
Start    rho 0.5 (CIFAR-10) or 1.0 (CIFAR-100 and ImageNet), eta 0.01 (authors' class; their script has 0);
         rho 2 with scaling = 'all' (davda54's example)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics.filters import is_weight
from steppe.core.numerics.perturbations import scaled_perturbation
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class ASAM(Method):
    """Minimise the loss at the worst point of a ball whose radius ``rho`` is relative to each weight."""

    controls: ClassVar[tuple[str, ...]] = ("two-step",)
    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.5
    eta: float = 0.01
    scaling: str = "weights"

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.5 is usual)")
        require(self, "eta", self.eta >= 0, "a number of at least 0 (0.01 or 0)")
        require(self, "scaling", self.scaling in ("weights", "all"), "'weights' or 'all'")

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb in the scaled space, gradient there, restore w, update."""
        rho = rt.setting("rho", self.rho)
        if rho == 0:
            return plain_step(batch, rt)
        out, g = rt.grad(batch)
        with rt.at(scaled_perturbation(rt.shared(g), rho, self._scale(rt))):
            _, g = rt.grad(batch)
        rt.apply(g)
        return out

    def _scale(self, rt: Runtime) -> Vec:
        if self.scaling == "all":
            return [p.detach().abs() for p in rt.params]
        return [
            p.detach().abs() + self.eta if is_weight(p, owner) else torch.ones_like(p)
            for p, owner in zip(rt.params, rt.owners, strict=True)
        ]
