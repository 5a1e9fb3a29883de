"""Latest weight averaging: deploy the mean of the last k networks, stored at the end of each epoch.

    v = (w_1 + ... + w_k) / k,   w_1 ... w_k the weights at the end of the last k periods;   deployed is v

Paper    Kaddour, 2022, arXiv:2209.14981
Code     none that we know
Cost     2 forward, 1 backward, 1 update (the second forward pass, at the mean, is for its running statistics: a
         hundred times a period, none without BatchNorm); memory: k + 1 copies of the weights
Limits   training itself is always Plain's; before the first period ends the weights are deployed as they are
Differs  1. running statistics are the mean's own, measured at its weights.
         2. a period is an epoch, or 10 steps in a loop that does not tell the length of its epochs (bind's epoch).
         3. device = 'cpu' keeps the copies on the host.
Start    k 5 to 10; combine it with any method that deploys the weights it trains: sam+lawa
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput, WindowAverage, hyper
from steppe.core.method.periods import PERIODS, is_period, period_ends, period_length


@dataclass(frozen=True)
class LAWA(Method[WindowAverage]):
    """Deploy the mean of the weights at the end of the last ``k`` periods."""

    limit: ClassVar = {}
    cost = Cost(2, 1, 1)

    k: int = hyper(5, "networks in the mean", minimum=1)
    every: int | str | None = hyper(None, "a period; None: an epoch", valid=is_period, remedy=PERIODS)
    device: str = hyper("model", "where the copies are kept", choices=("model", "cpu"))

    @property
    def whole(self) -> str:
        return "averages on the host are of whole weights" if self.device == "cpu" else ""

    @property
    def on_host(self) -> str:
        return "the copies are on the host" if self.device == "cpu" else ""

    def init(self, net: nn.Module) -> WindowAverage:
        return WindowAverage(net, self.k, None if self.device == "model" else torch.device("cpu"))

    def before(self, batch: Batch, state: WindowAverage, rt: Runtime) -> None:
        often = max(1, period_length(self.every, rt) // 100)
        if rt.decide(lambda: state.count > 0 and rt.now.step % often == 0):
            state.decide_place(rt)
            state.measure(rt, batch, 1.0)  # at the mean that this step would give

    def after(self, batch: Batch, out: StepOutput, state: WindowAverage, rt: Runtime) -> None:
        if rt.decide(lambda: period_ends(self.every, rt)):
            state.decide_place(rt)
            state.store(rt.net)

    def deployed_weights(self, net: nn.Module, state: WindowAverage) -> AbstractContextManager[None]:
        return state.swapped_in(net) if state.count else nullcontext()
