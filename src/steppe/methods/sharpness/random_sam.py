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

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


@dataclass(frozen=True)
class RandomSAM(Perturbing):
    """Minimise the loss at a random point at distance ``rho``."""

    cost = Cost(1, 1, 1)

    rho: ScheduleValue = hyper(0.05, "length of the perturbation", minimum=0, plain_at=0)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Perturb in a random direction, gradient there, restore w, update."""
        u = vector.gaussian(rt.params, rt.rng)
        with rt.at(scaled_perturbation(u, self.radius(rt)), clean=True):
            out, g = rt.grad(batch, last=True)
        rt.apply(g)
        return out
