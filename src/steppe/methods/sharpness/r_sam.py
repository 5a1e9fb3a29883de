"""Random SAM: compute SAM's perturbation at a random point nearby, so that it is smoother.

    w <- U(w, grad L(w + n + e)),   e = rho g_n / |g_n|,   g_n = grad L(w + n)
    n ~ N(0, (gamma |w_k|)^2) for every element of filter k

Paper    Liu et al., NeurIPS 2022, "Random sharpness-aware minimization"
Code     RSAM-Optimizer/R-SAM @ 1ceba0e (the authors', JAX)
Cost     2 forward, 2 backward, 1 update
Limits   rho = gamma = 0 is Plain; gamma = 0 is SAM; rho = 0 is RWP's noisy term
Differs  1. the authors' code takes the second gradient at w + rho (2 g_n + n) / |2 g_n + n|, not at w + n + e.
         2. running statistics and the reported loss come from the first pass, which is the noisy one: there is no
            clean pass. The authors train a network without running statistics.
         3. gamma and rho are constants unless rho is scheduled; theirs follow the step and the learning rate.
Start    rho as SAM, gamma 0.01 as RWP; for ViT-B/16 on ImageNet gamma rises from 0.0005 to 0.0025 (authors' code)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.filters import filter_noise
from steppe.core.numerics.perturbations import sam_perturbation, scaled_perturbation
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class RSAM(Method):
    """SAM at distance ``rho`` from a point at filter-wise noise of size ``gamma``."""

    controls: ClassVar[tuple[str, ...]] = ("sam", "two-step")
    limit: ClassVar = {"rho": 0.0, "gamma": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.05
    gamma: float = 0.01

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")
        require(self, "gamma", self.gamma >= 0, "a number of at least 0 (0.01)")

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient at w + n, gradient at w + n + e, restore w, update."""
        rho = rt.setting("rho", self.rho)
        if rho == 0 and self.gamma == 0:
            return plain_step(batch, rt)
        noise: vector.Vec = [None] * len(rt.params)
        if self.gamma:
            noise = filter_noise(rt.params, rt.owners, self.gamma, rt.rng).vector()
        with rt.at(noise, clean=True):
            out, g = rt.grad(batch)
        if rho:
            g = rt.shared(g)
            e = vector.add(noise, sam_perturbation(g, rho)) if self.gamma else scaled_perturbation(g, rho)
            with rt.at(e):
                _, g = rt.grad(batch)
        rt.apply(g)
        return out
