"""VaSSO: perturb along a running mean of the gradients, whose direction varies less than one batch's gradient.

    w <- U(w, grad L(w + e)),   e = rho d / |d|,   d <- (1 - theta) d + theta g,   g = grad L(w)

Paper    Li and Giannakis, NeurIPS 2023, arXiv:2309.15639, algorithm 1
Code     BingcongLi/VaSSO @ 2f27f68
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain; theta = 1 is SAM
Agrees   5e-8, as the authors add 1e-7 to |d|; 5e-13 without that
Differs  1. d has this batch's gradient in it, as in the paper; Friendly SAM takes its running mean away instead.
         2. under data parallelism d is that of all processes, one message more per step, so that a checkpoint
            does not depend on the process that wrote it; each process adds its own g to it.
         3. running statistics come from the clean pass only; the authors' code counts both.
         4. d begins with the first gradient (authors' code). A parameter without a gradient in this batch is not
            perturbed.
Start    rho as SAM (0.1 for CIFAR), theta 0.9 (authors' README)
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, ParamState, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


class SlowGradient(ParamState):
    """d, the gradient's running mean."""

    d = ParamState.Vector()


@dataclass(frozen=True)
class VaSSO(Perturbing[SlowGradient]):
    """SAM at distance ``rho`` along the running mean of the gradients, of which a new one weighs ``theta``."""

    controls = ("sam", "two-step")
    cost = Cost(2, 2, 1)

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    theta: float = hyper(0.9, "weight of the new gradient", above=0, maximum=1, usual="0.4 to 0.9")

    def step(self, batch: Batch, state: SlowGradient, rt: Runtime) -> StepOutput:
        """Gradient at w, perturb along its running mean, gradient there, restore w, update."""
        out, g = rt.grad(batch)
        if self.theta == 1:
            common, d = None, rt.shared(g)
        else:
            theta = self.theta if state.writes else 1.0
            common = rt.all_reduce_mean(g)
            d = vector.add(vector.scale(state.d, 1 - theta), rt.shared(g), by=theta)
            d = vector.only(d, [t is not None for t in g])
        with rt.at(scaled_perturbation(d, self.radius(rt))):
            _, g = rt.grad(batch)
        rt.apply(g)
        if common is not None:
            state.approach(common, theta)
        return out
