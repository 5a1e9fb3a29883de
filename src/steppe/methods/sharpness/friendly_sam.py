"""Friendly SAM: perturb along the part of the gradient that is specific to the batch.

    w <- U(w, grad L(w + e)),   e = rho d / |d|,   d = g - sigma m,   m <- lam m + (1 - lam) g,   g = grad L(w)

Paper    Li et al., CVPR 2024, arXiv:2403.12350, algorithm 1
Code     nblt/F-SAM @ 2e2f989
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain; sigma = 0 is SAM
Differs  1. d is taken from m as it was before this batch (authors' code); the paper updates m first, which is the
            same direction for sigma = 1.
         2. under data parallelism m is that of all processes, one message more per step, so that a checkpoint
            does not depend on the process that wrote it.
Start    rho 0.2, sigma 1, lam 0.6 (CIFAR-100, ResNet-18, authors' script; their default is 0.95)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, ParamState, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


class GradientMean(ParamState):
    """m, the gradient's running mean."""

    mean = ParamState.Vector()


@dataclass(frozen=True)
class FriendlySAM(Perturbing[GradientMean]):
    """SAM at distance ``rho`` along the gradient less ``sigma`` times its running mean."""

    controls = ("two-step",)
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.2, "radius of the ball", minimum=0, plain_at=0)
    sigma: float = hyper(1.0, "weight of the mean that is subtracted", minimum=0)
    lam: float = hyper(0.6, "decay of the mean", minimum=0, below=1, usual="0.6 to 0.95")

    def step(self, batch: Batch, state: GradientMean, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb along its part specific to the batch, gradient there, restore w, update."""
        out, g = rt.grad(batch)
        common = rt.all_reduce_mean(g)
        d = vector.add(rt.shared(g), state.mean, by=-self.sigma) if self.sigma else rt.shared(g)
        d = vector.only(d, [t is not None for t in g])
        with rt.at(scaled_perturbation(d, self.radius(rt))):
            _, g = rt.grad(batch)
        rt.apply(g)
        state.approach(common, rt.number(lambda: 1 - self.lam if state.writes else 1.0))
        return out
