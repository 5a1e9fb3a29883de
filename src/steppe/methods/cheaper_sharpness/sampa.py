"""SAMPa: SAM whose two gradients do not wait for each other, so that two processes take one each.

    w <- U(w, (1 - lam) grad L(w + e) + lam h'),   e = rho h / |h|,   h' = grad L(y),   y = U(w, h),   then h = h'

h is the gradient at the point to which the step before looked ahead: y is where h would have taken the weights.

Paper    Xie, Pethick and Cevher, NeurIPS 2024, arXiv:2410.10683, algorithm 1 and section 4 (lam)
Code     LIONS-EPFL/SAMPa @ 9fd7534
Cost     2 forward, 2 backward, 1 update; halves: half of the processes each: 1 forward, 1 backward
Limits   rho = 0 with lam = 0 is Plain; the first step is Plain's, there is no h yet
Agrees   4e-16 where both gradients are of the batches that the authors' two processes take
Differs  1. both gradients are of the step's batch; the authors take that at w + e on the batch before, the one
            of h: their script holds two batches.
         2. halves = True: even processes take the gradient at w + e, odd ones that at y, each on its own batch,
            for any number of processes above one; the authors' script runs on two. h is that of the odd processes,
            or of all without halves: one message more per step.
         3. U(w, h) is Adam's rule or SGD's with momentum, decay and clipping, and SGD's for any other optimizer;
            the authors' knows SGD's momentum.
         4. running statistics and the loss come from the pass at y, or from the first process.
         5. active in some steps only (every), h is the gradient of the last of these.
Start    rho 0.1, lam 0.2 (authors' script: CIFAR, SGD)
"""

from dataclasses import dataclass

from steppe.core.method import (
    Batch,
    Cost,
    ParamState,
    Perturbing,
    Runtime,
    ScheduleValue,
    StepOutput,
    hyper,
    look_ahead,
)
from steppe.core.method.numerics import Vec, scaled_perturbation, vector


class LookAheadGradient(ParamState):
    """h, the gradient at the last point that was looked ahead to; zero at first."""

    h = ParamState.Vector()


@dataclass(frozen=True)
class SAMPa(Perturbing[LookAheadGradient]):
    """SAM at distance ``rho`` along a gradient of the step before, plus ``lam`` of the next such gradient."""

    controls = ("sam", "two-step")

    rho: ScheduleValue = hyper(0.1, "radius of the ball", minimum=0, plain_at=0)
    lam: float = hyper(0.2, "weight of the gradient at y", minimum=0, maximum=1, plain_only_at=0)
    halves: bool = hyper(False, "half of the processes take each gradient", plain_only_at=False)

    @property
    def cost(self) -> Cost:
        return Cost(1, 1, 1) if self.halves else Cost(2, 2, 1)

    @property
    def local(self) -> str:
        return "the number of processes decides which samples get the perturbation" if self.halves else ""

    def step(self, batch: Batch, state: LookAheadGradient, rt: Runtime) -> StepOutput:
        """Gradient at y, gradient at w + e, restore w, update with their weighted mean."""
        e = scaled_perturbation(state.h, self.radius(rt))
        ahead: Vec = look_ahead(rt, state.h) if state.writes else [None] * len(rt.params)
        if self.halves:
            even, odd = rt.parallel.processes_per_part(2)
            looks = rt.parallel.rank % 2 == 1
            with rt.at(ahead if looks else e, clean=True):
                out, g = rt.grad(batch)
            h = rt.all_reduce_mean(g, weight=rt.weight(batch) * looks)
            rt.apply(g, weight=self.lam / odd if looks else (1 - self.lam) / even)
        else:
            with rt.at(ahead, clean=True):
                out, g = rt.grad(batch)
            with rt.at(e):
                _, g_p = rt.grad(batch)
            h = rt.all_reduce_mean(g)
            rt.apply(vector.lerp(g_p, g, self.lam))
        state.assign(h)
        return out
