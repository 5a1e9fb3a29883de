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
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.perturbations import scaled_perturbation
from steppe.core.schedules import ScheduleValue, lowest
from steppe.core.state.param_state import ParamState


@dataclass(frozen=True)
class FriendlySAM(Method):
    """SAM at distance ``rho`` along the gradient less ``sigma`` times its running mean of decay ``lam``."""

    controls: ClassVar[tuple[str, ...]] = ("two-step",)
    limit: ClassVar = {"rho": 0.0}
    cost: ClassVar = (2, 2, 1)

    rho: ScheduleValue = 0.2
    sigma: float = 1.0
    lam: float = 0.6

    def check(self) -> None:
        require(self, "rho", lowest(self.rho) >= 0, "a number of at least 0 (0.2 is usual)")
        require(self, "sigma", self.sigma >= 0, "a number of at least 0 (1 is usual)")
        require(self, "lam", 0 <= self.lam < 1, "a number from 0 to below 1 (0.6 to 0.95)")

    def init(self, net: nn.Module) -> nn.Module:
        """Keep the gradient's running mean."""
        return ParamState(net)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb along its part specific to the batch, gradient there, restore w, update."""
        rho = rt.setting("rho", self.rho)
        if rho == 0:
            return plain_step(batch, rt)
        assert isinstance(state, ParamState)
        mean = state.read(rt.params, rt.net)
        out, g = rt.grad(batch)
        common = rt.all_reduce_mean(g)
        d = vector.add(rt.shared(g), mean, by=-self.sigma) if self.sigma else rt.shared(g)
        with rt.at(scaled_perturbation(vector.only(d, [t is not None for t in g]), rho)):
            _, g = rt.grad(batch)
        rt.apply(g)
        weight = 1 - self.lam if state.writes else 1.0
        state.approach(rt.params, rt.net, common, weight)
        return out
