"""Stochastic weight averaging: deploy the plain mean of the weights late in training.

    v <- (n v + w) / (n + 1) at the end of each period of ``every`` steps from ``start`` on;   deployed is v

Paper    Izmailov et al., UAI 2018, arXiv:1803.05407, algorithm 1
Code     torch.optim.swa_utils
Cost     2 forward, 1 backward, 1 update (the second forward pass, at the mean that the step would give, is for its
         running statistics: none before start, none without BatchNorm)
Limits   training itself is always Plain's; before start the weights are deployed as they are
Differs  1. running statistics are measured at the mean while training goes on; the paper does so at the end.
         2. the learning rate is the user's schedule; the paper keeps it constant or cyclic from start on.
Start    start 0.75, every 1e (the end of each epoch: the paper's moments); combine it with any method that deploys
         the weights it trains: sam+swa
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput, WeightAverage, hyper
from steppe.core.method.periods import PERIODS, is_period, period_ends


@dataclass(frozen=True)
class SWA(Method[WeightAverage]):
    """Deploy the mean of the weights at the end of each ``every`` steps, from ``start`` on.

    Steps count from ``start`` if that is a number of steps, from the first step if it is a share of the training.
    """

    limit: ClassVar = {}
    cost = Cost(2, 1, 1)

    start: float = hyper(0.75, "when the mean begins", amount=True)
    every: int | str = hyper(1, "a period, in steps or epochs", valid=is_period, remedy=PERIODS)

    def before(self, batch: Batch, state: WeightAverage, rt: Runtime) -> None:
        if rt.decide(lambda: state.count > 0):  # the first network's own statistics fit the mean
            state.measure(rt, batch, rt.number(lambda: 1 / (state.count + 1)))

    def after(self, batch: Batch, out: StepOutput, state: WeightAverage, rt: Runtime) -> None:
        if rt.decide(lambda: self._due(rt)):
            state.update(rt.net, rt.number(lambda: 1 / (state.count + 1)))

    def _due(self, rt: Runtime) -> bool:
        first = math.ceil(self.start) if self.start >= 1 else 0
        ends = period_ends(self.every, rt, first)  # which refuses epochs of unknown length in the first step
        return ends and rt.now.reached(self.start, "start")

    def deployed_weights(self, net: nn.Module, state: WeightAverage) -> AbstractContextManager[None]:
        return state.swapped_in(net) if state.count else nullcontext()
