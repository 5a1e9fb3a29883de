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

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import Vec, filters, sam_perturbation, scaled_perturbation, vector


@dataclass(frozen=True)
class RSAM(Perturbing):
    """SAM at distance ``rho`` from a point at filter-wise noise of size ``gamma``."""

    controls = ("sam", "two-step")
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    gamma: float = hyper(0.01, "noise, relative to a filter's norm", minimum=0, plain_only_at=0)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient at w + n, gradient at w + n + e, restore w, update."""
        rho = self.radius(rt)
        n: Vec = [None] * len(rt.params)
        if self.gamma:
            n = filters.filter_noise(rt.params, rt.owners, self.only_perturbed(rt, self.gamma), rt.rng).vector()
        with rt.at(n, clean=True):
            out, g = rt.grad(batch, where=self.perturbed(rt, rho))
        if vector.nonzero(rho):
            g = rt.shared(g)
            e = vector.add(n, sam_perturbation(g, rho)) if self.gamma else scaled_perturbation(g, rho)
            with rt.at(e):
                _, g = rt.grad(batch, last=True)
        rt.apply(g)
        return out
