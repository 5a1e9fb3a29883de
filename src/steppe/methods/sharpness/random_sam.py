"""Random-direction SAM: a perturbation of SAM's length in a random direction, a control for SAM.

    w <- U(w, grad L(w + e)),   e = rho u / |u|,   u ~ N(0, I)

Paper    none: the usual ablation of SAM's ascent direction
Code     none
Cost     1 forward, 1 backward, 1 update
Limits   rho = 0 is Plain
Differs  the running statistics come from the perturbed pass, the only one
Start    rho 0.05, as SAM
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import scaled_perturbation
from steppe.core.schedules import ScheduleValue, lowest


@dataclass(frozen=True)
class RandomSAM(Method):
    """Minimise the loss at a random point at distance ``rho``."""

    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (1, 1, 1)

    rho: ScheduleValue = 0.05

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.05 is usual)")

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Perturb in a random direction, gradient there, restore w, update."""
        rho = rt.setting("rho", self.rho)
        if rho == 0:
            return plain_step(batch, rt)
        with rt.at(scaled_perturbation(vector.gaussian(rt.params, rt.rng), rho), clean=True):
            out, g = rt.grad(batch)
        rt.apply(g)
        return out
