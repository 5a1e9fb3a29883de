"""Lookahead: every few steps the weights are set to a slow average of themselves.

    v <- v + alpha (w - v),   w <- v   after each ``every`` steps;   v_0 = w_0

Paper    Zhang et al., NeurIPS 2019, arXiv:1907.08610, algorithm 1
Code     michaelrzhang/lookahead
Cost     1 forward, 1 backward, 1 update; memory: a copy of the weights
Limits   alpha = 1 is Plain
Differs  1. BatchNorm's running statistics are averaged like weights and set to the average, as in
            KellerJordan/cifar10-airbench; the paper's code leaves them.
         2. the optimizer's momentum stays, the paper's default.
         3. alpha may follow a schedule, and a parameter group may have its own; running statistics have the
            method's. airbench94 has every = 5, alpha = power(1,0.22622,3).
         4. deployed are the weights w, between two periods too, as in a validation during training in the paper.
Start    alpha 0.5, every 5 (the paper's values on CIFAR-10: alpha 0.8, every 5); combine it with any method of one
         update: sam+lookahead, sam+lookahead+ema
"""

from dataclasses import dataclass
from typing import ClassVar

from steppe.core.method import Batch, Cost, Method, Runtime, ScheduleValue, SlowWeights, StepOutput, hyper
from steppe.core.method.periods import PERIODS, is_period, period_ends


@dataclass(frozen=True)
class Lookahead(Method[SlowWeights]):
    """Set the weights to their slow average after each ``every`` steps."""

    limit: ClassVar = {"alpha": 1.0}
    cost = Cost(1, 1, 1)
    mixes = "running statistics are set to their average"
    moves = "the weights are set to their average"

    alpha: ScheduleValue = hyper(0.5, "weight of w in the slow average", minimum=0, maximum=1)
    every: int | str = hyper(5, "a period, in steps or epochs", valid=is_period, remedy=PERIODS)

    def after(self, batch: Batch, out: StepOutput, state: SlowWeights, rt: Runtime) -> None:
        if rt.decide(lambda: period_ends(self.every, rt)):
            state.set_to_average(rt, "alpha", self.alpha)
