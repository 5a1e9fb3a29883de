"""Stochastic weight averaging: deploy the plain mean of the weights late in training.

    v <- (n v + w) / (n + 1) on every ``every``-th step from ``start`` on;   deployed is v

Paper    Izmailov et al., UAI 2018, arXiv:1803.05407, algorithm 1
Code     torch.optim.swa_utils
Cost     1 forward, 1 backward, 1 update
Limits   training itself is always Plain's; before start the weights are deployed as they are
Differs  1. running statistics are averaged too; the paper measures them anew on the training data at the end.
         2. the learning rate is the user's schedule; the paper keeps it constant or cyclic from start on.
Start    start 0.75, every = the steps of an epoch; combine it with any method: sam+swa
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, require
from steppe.core.state.weight_average import WeightAverage


@dataclass(frozen=True)
class SWA(Method):
    """Deploy the mean of the weights from ``start`` (a share of training, or a step) on, each ``every`` steps."""

    limit: ClassVar = {}
    cost: ClassVar = (1, 1, 1)

    start: float = 0.75
    every: int = 1

    def check(self) -> None:
        require(self, "start", self.start >= 0, "a step number, or a share of the training below 1")
        require(self, "every", self.every >= 1, "at least 1")

    def init(self, net: nn.Module) -> nn.Module:
        return WeightAverage(net)

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        assert isinstance(state, WeightAverage)
        if rt.now.reached(self.start, "start") and rt.now.step % self.every == 0:
            state.update(rt.net, 1 / (state.count + 1))

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        assert isinstance(state, WeightAverage)
        return state.swapped_in(net) if state.count else nullcontext()
