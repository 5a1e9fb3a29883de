"""Stochastic weight averaging: deploy the plain mean of the weights late in training.

    v <- (n v + w) / (n + 1) at the end of each period of ``every`` steps from ``start`` on;   deployed is v

Paper    Izmailov et al., UAI 2018, arXiv:1803.05407, algorithm 1
Code     torch.optim.swa_utils
Cost     2 forward, 1 backward, 1 update (the second forward pass, at the mean that the step would give, is for its
         running statistics: none before start, none without BatchNorm)
Limits   training itself is always Plain's; before start the weights are deployed as they are
Differs  1. running statistics are measured at the mean while training goes on; the paper does so at the end.
         2. the learning rate is the user's schedule; the paper keeps it constant or cyclic from start on.
Start    start 0.75, every = the steps of an epoch; combine it with any method that deploys the weights it trains:
         sam+swa
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, require
from steppe.core.state.weight_average import WeightAverage


@dataclass(frozen=True)
class SWA(Method):
    """Deploy the mean of the weights at the end of each ``every`` steps, from ``start`` on.

    Steps count from ``start`` if that is a number of steps, from the first step if it is a share of the training.
    """

    limit: ClassVar = {}
    cost: ClassVar = (2, 1, 1)
    amounts: ClassVar = ("start",)

    start: float = 0.75
    every: int = 1

    def check(self) -> None:
        require(self, "start", self.start >= 0, "a step number, or a share of the training below 1")
        require(self, "every", self.every >= 1, "at least 1")

    def init(self, net: nn.Module) -> nn.Module:
        return WeightAverage(net)

    def before(self, batch: Batch, state: nn.Module, rt: Runtime) -> None:
        assert isinstance(state, WeightAverage)
        if state.count:  # the first network's own statistics fit the mean
            state.measure(rt, batch, 1 / (state.count + 1))

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        assert isinstance(state, WeightAverage)
        first = math.ceil(self.start) if self.start >= 1 else 0
        if rt.now.reached(self.start, "start") and (rt.now.step + 1 - first) % self.every == 0:
            state.update(rt.net, 1 / (state.count + 1))

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        assert isinstance(state, WeightAverage)
        return state.swapped_in(net) if state.count else nullcontext()
