"""MESA: stay close to the outputs of a running mean of the weights.

    w <- U(w, grad [L(w) + lam T^2 KL(softmax(f(x; v) / T) || softmax(f(x; w) / T))]),   v <- d v + (1 - d) w

Paper    Du et al., NeurIPS 2022, arXiv:2205.14083, section 3.3
Code     AngusDujw/SAF @ 6e85600, MESA_train.py
Cost     3 forward, 1 backward, 1 update (the mean's forward passes need no gradient: one is the teacher's, from
         start on, and one is for its running statistics, at decay 0.9998 on every fiftieth step)
Limits   lam = 0 is Plain
Differs  1. squared = True multiplies the KL by T^2 as the code does; the poster does not (its lam is then 25 times
            ours at T = 5).
         2. the mean warms up, d = min(decay, (1 + t) / (10 + t)): at decay 0.9998 it would hold a fifth of the
             random initial weights after six epochs.
          3. the mean's running statistics are its own, measured at its weights; the code averages them.
          4. deployed are the weights; the code reports the mean's accuracy if that option is set.
Start    lam 0.8, T 5, decay 0.9998, start after 6 epochs of 90, 0.066666 (authors' script:
         epoch > 5, counted from 0)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, require
from steppe.core.model_call import call_model, extract_logits
from steppe.core.numerics.losses import kl_divergence
from steppe.core.state.weight_average import WeightAverage


@dataclass(frozen=True)
class MESA(Method):
    """Add ``lam`` times the divergence from the running mean's outputs at temperature ``T``, from ``start`` on."""

    limit: ClassVar = {"lam": 0.0}
    cost: ClassVar = (3, 1, 1)
    amounts: ClassVar = ("start",)

    lam: float = 0.8
    T: float = 5.0
    decay: float = 0.9998
    start: float = 0
    squared: bool = True

    def check(self) -> None:
        require(self, "lam", self.lam >= 0, "a number of at least 0 (0.8 is usual)")
        require(self, "T", self.T > 0, "a number above 0 (5 is usual)")
        require(self, "decay", 0 <= self.decay < 1, "a number from 0 to below 1 (0.9998 is usual)")
        require(self, "start", self.start >= 0, "a step number, or a share of the training below 1")

    def init(self, net: nn.Module) -> nn.Module:
        return WeightAverage(net)

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The loss plus the divergence from the mean."""
        assert isinstance(state, WeightAverage)
        if self.lam == 0 or not rt.now.reached(self.start, "start"):
            return rt.supervised(batch)
        # before the pass of the weights, whose graph a change of them would break
        with state.swapped_in(rt.net):
            teacher = extract_logits(call_model(rt.net, batch.x))
        rt.count(forward=len(batch))
        out = rt.supervised(batch)
        weight = self.lam * (self.T**2 if self.squared else 1.0)
        return StepOutput(out.loss + weight * kl_divergence(teacher, out.logits, self.T), out.logits)

    def before(self, batch: Batch, state: nn.Module, rt: Runtime) -> None:
        assert isinstance(state, WeightAverage)
        if self.lam:
            state.measure_if_due(rt, batch, state.warm_up(self.decay))

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        assert isinstance(state, WeightAverage)
        if self.lam:
            state.update(rt.net, state.warm_up(self.decay))
