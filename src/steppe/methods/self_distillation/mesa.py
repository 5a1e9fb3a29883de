"""MESA: stay close to the outputs of a running mean of the weights.

    w <- U(w, grad [L(w) + lam T^2 KL(softmax(f(x; v) / T) || softmax(f(x; w) / T))]),   v <- d v + (1 - d) w

Paper    Du et al., NeurIPS 2022, arXiv:2205.14083, section 3.3
Code     AngusDujw/SAF @ 6e85600, MESA_train.py
Cost     3 forward, 1 backward, 1 update (the mean's forward passes need no gradient: one is the teacher's, from
         start on, and one is for its running statistics, at decay 0.9998 on every fiftieth step)
Limits   lam = 0 is Plain
Outputs  classes, labels or numbers, of samples or positions
Differs  1. squared = True multiplies the KL by T^2 as the code does; the poster does not (its lam is then 25 times
            ours at T = 5).
         2. the mean warms up, d = min(decay, (1 + t) / (10 + t)): at decay 0.9998 it would hold a fifth of the
             random initial weights after six epochs.
         3. the mean's running statistics are its own, measured at its weights; the code averages them.
         4. deployed are the weights; the code reports the mean's accuracy if that option is set.
Start    lam 0.8, T 5, decay 0.9998, start 0.066666, 6 epochs of 90 (authors' script: epoch > 5, counted from 0)
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput, WeightAverage, hyper


@dataclass(frozen=True)
class MESA(Method[WeightAverage]):
    """Add ``lam`` times the divergence from the running mean's outputs at temperature ``T``, from ``start`` on."""

    cost = Cost(3, 1, 1)

    lam: float = hyper(0.8, "weight of the divergence", minimum=0, plain_at=0)
    T: float = hyper(5.0, "temperature", above=0)
    decay: float = hyper(0.9998, "d of the mean, after its warm-up", minimum=0, below=1)
    start: float = hyper(0, "when the divergence begins", amount=True)
    squared: bool = hyper(True, "multiply the divergence by T^2")

    def objective(self, batch: Batch, state: WeightAverage, rt: Runtime) -> StepOutput:
        """The loss plus the divergence from the mean."""
        if not rt.decide(lambda: rt.now.reached(self.start, "start")):
            return rt.supervised(batch)
        # before the pass of the weights, whose graph a change of them would break
        # a loss that calls the model itself may have a state of its own
        keep = nullcontext() if callable(rt.options.loss) else rt.preserve_state()
        with state.swapped_in(rt.net), keep:
            teacher = rt.forward(batch, rt.net)
        rt.count(forward=len(batch))
        out = rt.supervised(batch)
        weight = self.lam * (self.T**2 if self.squared else 1.0)
        return StepOutput(out.loss + weight * rt.divergence(teacher, out.logits, batch, self.T), out.logits)

    def before(self, batch: Batch, state: WeightAverage, rt: Runtime) -> None:
        if self.lam:
            state.measure_if_due(rt, batch, partial(state.warm_up, self.decay))

    def after(self, batch: Batch, out: StepOutput, state: WeightAverage, rt: Runtime) -> None:
        if self.lam:
            state.update(rt.net, rt.number(partial(state.warm_up, self.decay)))
