"""Weighted SAM: sharpness as a regulariser with a weight of its own.

    decoupled  w <- U(w, g) - eta a (g_p - g)          coupled  w <- U(w, g + a (g_p - g))
    a = gamma / (1 - gamma),   g_p = grad L(w + rho g / |g|),   g = grad L(w),   eta the learning rate

Paper    Yue et al., KDD 2023, arXiv:2305.15817, algorithms 1 and 2
Code     intelligent-machine-learning/dlrover, atorch wsam.py @ 05e4f76
Cost     2 forward, 2 backward, 1 update
Limits   gamma = 0 or rho = 0 is Plain; coupled with gamma = 1/2 is SAM
Differs  1. clipping is of the gradient given to the optimizer; the authors' code clips g and g_p separately.
         2. sync = 'global' makes one common perturbation; the authors' is per process.
Start    rho 0.05, gamma 0.9 (authors' README), decoupled
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


@dataclass(frozen=True)
class WSAM(Perturbing):
    """Minimise L + gamma / (1 - gamma) (L_p - L)."""

    controls = ("two-step",)
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    gamma: float = hyper(0.9, "weight of the sharpness", minimum=0, below=1, plain_at=0)
    decoupled: bool = hyper(True, "keep the sharpness out of the optimizer's moments")

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient g at w, gradient g_p at w + e, restore w, update with g and a weighted g_p - g."""
        out, g = rt.grad(batch)
        with rt.at(scaled_perturbation(rt.shared(g), self.radius(rt))):
            _, g_p = rt.grad(batch)
        a = self.gamma / (1 - self.gamma)
        if self.decoupled:
            rt.apply(g, decoupled=vector.scale(vector.add(g, g_p, by=-1), a))
        else:
            rt.apply(vector.lerp(g_p, g, 1 - a))  # exact where a is 1, that is SAM
        return out
