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
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import scaled_perturbation
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class WSAM(Method):
    """Minimise L + gamma / (1 - gamma) (L_p - L); ``decoupled`` keeps the second term out of the moments."""

    controls: ClassVar[tuple[str, ...]] = ("two-step",)
    limit: ClassVar = {"gamma": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.05
    gamma: float = 0.9
    decoupled: bool = True

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")
        require(self, "gamma", 0 <= self.gamma < 1, "a number from 0 to below 1 (0.9 is usual)")

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient g at w, gradient g_p at w + e, restore w, update with g and a weighted g_p - g."""
        rho = rt.setting("rho", self.rho)
        if rho == 0 or self.gamma == 0:
            return plain_step(batch, rt)
        out, g = rt.grad(batch)
        with rt.at(scaled_perturbation(rt.shared(g), rho)):
            _, g_p = rt.grad(batch)
        a = self.gamma / (1 - self.gamma)
        if self.decoupled:
            rt.apply(g, decoupled=vector.scale(vector.add(g, g_p, by=-1), a))
        else:
            # exact where a is 1, that is SAM
            rt.apply(vector.lerp(g_p, g, 1 - a))
        return out
