"""Adaptive random weight perturbation: RWP whose noise is smaller where past gradients were large.

    w <- U(w, alpha g + (1 - alpha) g_n),   g = grad L(w),   g_n = grad L(w + n),   F <- beta F + g_n^2
    n ~ N(0, (gamma |w_k|)^2 / (1 + eta F_k)) for every element of filter k,   F_k the sum of F over filter k;
    each element of a bias or norm parameter has its own F

Paper    Li et al., TMLR 2024, "Revisiting random weight perturbation ..."
Code     nblt/mARWP @ d739394
Cost     2 forward, 2 backward, 1 update
Limits   alpha = 1 is Plain; eta = 0 is RWP
Differs  1. alpha weighs the clean gradient, as in RWP's paper; the authors' lambda is 1 - alpha.
         2. both gradients are of the same batch; their script takes the next batch for the noisy one.
         3. under data parallelism F is made of the mean noisy gradient, so that a checkpoint does not depend on
            the process that wrote it.
Start    gamma 0.015, alpha 0.5, eta 0.1, beta 0.99 (CIFAR, authors' script)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, plain_step, require
from steppe.core.numerics import vector
from steppe.core.numerics.filters import filter_noise, unit_sums
from steppe.core.schedules import ScheduleValue, lowest
from steppe.core.state.param_state import ParamState


@dataclass(frozen=True)
class ARWP(Method):
    """RWP with filter-wise noise ``gamma``, damped by ``eta`` times the squared gradients of decay ``beta``."""

    controls: ClassVar[tuple[str, ...]] = ("rwp", "two-step")
    limit: ClassVar = {"alpha": 1.0}
    cost: ClassVar = (2, 2, 1)

    gamma: ScheduleValue = 0.015
    alpha: float = 0.5
    eta: float = 0.1
    beta: float = 0.99

    def check(self) -> None:
        require(self, "gamma", lowest(self.gamma) >= 0, "a number of at least 0 (0.015 is usual)")
        require(self, "alpha", 0 <= self.alpha <= 1, "a number from 0 (noise only) to 1 (plain)")
        require(self, "eta", self.eta >= 0, "a number of at least 0 (0.1 is usual)")
        require(self, "beta", 0 <= self.beta < 1, "a number from 0 to below 1 (0.99 is usual)")

    def init(self, net: nn.Module) -> nn.Module:
        """Keep F, the decayed sum of squared gradients."""
        return ParamState(net)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Clean gradient at w, noisy gradient at w + n, restore w, update with their mean; add the square to F."""
        gamma = rt.setting("gamma", self.gamma)
        if self.alpha == 1 or gamma == 0:
            return plain_step(batch, rt)
        assert isinstance(state, ParamState)
        past = state.read(rt.params, rt.net)
        damping = None
        if self.eta:
            sums = unit_sums(past, rt.params, rt.owners)
            damping = vector.map_each(lambda f: (1 + self.eta * f).rsqrt(), sums)
        noise = filter_noise(rt.params, rt.owners, gamma, rt.rng, damping)
        out, g = rt.grad(batch)
        with rt.at(noise):
            _, noisy = rt.grad(batch)
        common = rt.all_reduce_mean(noisy)
        rt.apply(vector.lerp(noisy, g, self.alpha))
        state.write(rt.params, rt.net, vector.add(vector.times(common, common), past, by=self.beta))
        return out
