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

from steppe.core.method import Batch, Cost, ParamState, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import filters, vector


class SquaredGradients(ParamState):
    """F, the decayed sum of squared gradients."""

    F = ParamState.Vector()


@dataclass(frozen=True)
class ARWP(Perturbing[SquaredGradients]):
    """RWP with filter-wise noise ``gamma`` that past squared gradients damp."""

    controls = ("rwp", "two-step")
    cost = Cost(2, 2, 1)

    gamma: ScheduleValue = hyper(0.015, "noise, relative to a filter's norm", minimum=0, plain_at=0)
    alpha: float = hyper(0.5, "weight of the clean gradient", minimum=0, maximum=1, plain_at=1)
    eta: float = hyper(0.1, "weight of F in the damping", minimum=0)
    beta: float = hyper(0.99, "decay of F", minimum=0, below=1)

    def step(self, batch: Batch, state: SquaredGradients, rt: Runtime) -> StepOutput:
        """Clean gradient at w, noisy gradient at w + n, restore w, update with their mean; add the square to F."""
        past, damping = state.F, None
        if self.eta:
            sums = filters.unit_sums(past, rt.params, rt.owners)
            damping = vector.map_each(lambda f: (1 + self.eta * f).rsqrt(), sums)
        n = filters.filter_noise(rt.params, rt.owners, self.radius(rt, "gamma"), rt.rng, damping)
        out, g = rt.grad(batch)
        with rt.at(n):
            _, g_n = rt.grad(batch)
        common = rt.all_reduce_mean(g_n)
        rt.apply(vector.lerp(g_n, g, self.alpha))
        state.F = vector.add(vector.times(common, common), past, by=self.beta)
        return out
