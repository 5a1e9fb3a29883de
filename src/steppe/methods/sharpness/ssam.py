"""Stable SAM: scale the perturbed gradient to the length of the clean one.

    w <- U(w, |g| / |g_p| g_p),   g_p = grad L(w + rho g / |g|),   g = grad L(w)

Paper    Tan et al., JMLR 2025, arXiv:2401.07250, algorithm 1
Code     cltan023/stablesam2024 @ 92d53cf
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain; where both gradients have the same length it is SAM
Agrees   5e-16
Differs  1. a zero perturbed gradient stays zero, as in the authors' code; the paper divides by its length.
         2. running statistics come from the clean pass only; the authors' code counts both.
Start    rho as SAM; the paper reports a wider range of learning rates
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import at_length_of, scaled_perturbation


@dataclass(frozen=True)
class SSAM(Perturbing):
    """SAM at distance ``rho``, its gradient at the length of the clean gradient."""

    controls = ("sam", "two-step")
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient at w, gradient at w + e, restore w, update with the latter at the length of the former."""
        out, g = rt.grad(batch)
        g = rt.shared(g)
        with rt.at(scaled_perturbation(g, self.radius(rt))):
            _, g_p = rt.grad(batch)
        rt.apply(at_length_of(g, rt.shared(g_p)))
        return out
