"""Asynchronous SAM: perturb along the gradient of the step before, so that a step has one pass.

    w <- U(w, grad L(w + e)),   e = rho h / |h|,   h the gradient of the step before

Paper    Jo, Lim and Lee, 2025, arXiv:2503.11147, with a staleness of one step
Code     none that we know
Cost     1 forward, 1 backward, 1 update
Limits   rho = 0 is Plain; the first step is Plain's, or that of half of the processes
Differs  1. on one process h is the gradient that updated the weights, at the perturbed weights of the step before;
            the paper takes it at the weights themselves, by a second device (S2-SAM's choice is ours).
         2. halves = True is the paper's way: even processes take the gradient of the update at w + e, odd ones
            that of the next perturbation at w, each on its own batch and at the same time. The update is the mean
            over the even processes alone, for any number of processes above one.
         3. the paper's second device may have a smaller batch; here the batches are the loader's.
         4. under data parallelism h is that of all processes (of all odd ones), one message more per step.
         5. running statistics and the loss come from the perturbed pass, the only one, or from the first process.
         6. active in some steps only (every), h is the gradient of the last of these.
Start    rho as SAM
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, ParamState, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


class LastGradient(ParamState):
    """h, the gradient of the step before; zero at first."""

    h = ParamState.Vector()


@dataclass(frozen=True)
class AsyncSAM(Perturbing[LastGradient]):
    """SAM at distance ``rho`` along the gradient of the step before."""

    controls = ("plain", "sam")
    cost = Cost(1, 1, 1)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    halves: bool = hyper(False, "half of the processes take each gradient", plain_only_at=False)

    @property
    def local(self) -> str:
        return "the number of processes decides which samples get the perturbation" if self.halves else ""

    def step(self, batch: Batch, state: LastGradient, rt: Runtime) -> StepOutput:
        """Perturb along the last gradient, gradient there, restore w, update; halves: half stay at w."""
        ascends = self.halves and rt.parallel.rank % 2 == 1
        if self.halves:
            rt.parallel.processes_per_part(2)
        if ascends:
            out, g = rt.grad(batch)
        else:
            with rt.at(scaled_perturbation(state.h, self.radius(rt)), clean=True):
                out, g = rt.grad(batch)
        size = rt.weight(batch)
        h = vector.clone(rt.all_reduce_mean(g, weight=size * ascends if self.halves else None))
        rt.apply(g, weight=size * (not ascends) if self.halves else None)
        state.assign(h)
        return out
