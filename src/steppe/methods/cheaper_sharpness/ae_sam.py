"""AE-SAM: a step of SAM where the gradient is unusually long, a plain one elsewhere.

    a step of SAM if |g|^2 >= mu + c sigma, else of Plain;   g = grad L(w)
    mu <- delta mu + (1 - delta) |g|^2,   sigma^2 <- delta sigma^2 + (1 - delta) (|g|^2 - mu)^2
    c = lam2 at the beginning, lam1 at the end, in a straight line

Paper    Jiang et al., ICLR 2023, arXiv:2304.14647, algorithm 1
Code     none that we know
Cost     2 forward, 2 backward, 1 update at most; in its steps without perturbation 1 forward, 1 backward, 1 update
Limits   rho = 0 is Plain; a very negative lam1 = lam2 is SAM
Differs  1. |g| is that of the gradient over all processes, one message more per step, so that all decide alike.
         2. the decision is read by the processor, which waits for a GPU once a step: it saves two passes.
         3. the paper's threshold needs the length of the training; with lam1 = lam2 none is needed.
Start    rho as SAM, delta 0.9: about half of the steps are SAM's, more of them late. The rule, delta and that
         share are as others report the paper (junaidaliop/zij). lam1 -1, lam2 1 and sigma^2 at first e^-10 are
         from memory; no source that we could open has them
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steppe.core.method import Batch, Cost, Perturbing, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import scaled_perturbation, vector


class SquaredLength(nn.Module):
    """The running mean and variance of the gradient's squared length."""

    content = "two numbers"
    mean: Tensor
    variance: Tensor

    def __init__(self, net: nn.Module):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("variance", torch.tensor(math.exp(-10)))


@dataclass(frozen=True)
class AESAM(Perturbing[SquaredLength]):
    """SAM at distance ``rho`` in steps whose gradient is longer than its running mean and deviation say."""

    controls = ("plain", "sam")
    cost = Cost(2, 2, 1)
    on_host = "the gradient's length decides which passes it makes"

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    delta: float = hyper(0.9, "decay of mean and variance", minimum=0, below=1)
    lam1: float = hyper(-1.0, "deviations above the mean at the end")
    lam2: float = hyper(1.0, "deviations above the mean at the beginning")

    @property
    def needs_length(self) -> str:
        return "the threshold of ae-sam goes from lam2 to lam1 over the training" if self.lam1 != self.lam2 else ""

    def step(self, batch: Batch, state: SquaredLength, rt: Runtime) -> StepOutput:
        """Gradient at w; if it is long, gradient at w + e and restore w; update."""
        done = rt.now.part_of(None, "lam2") if self.lam1 != self.lam2 else 0.0
        threshold = self.lam2 + (self.lam1 - self.lam2) * done
        out, g = rt.grad(batch)
        square = vector.norm(rt.all_reduce_mean(g)).square()
        mean = square.lerp(state.mean.to(square), self.delta)
        variance = (square - mean).square().lerp(state.variance.to(square), self.delta)
        if square >= mean + threshold * variance.sqrt():
            with rt.at(scaled_perturbation(rt.shared(g), self.radius(rt))):
                _, g = rt.grad(batch)
        rt.apply(g)
        state.mean.copy_(mean)
        state.variance.copy_(variance)
        return out
