"""Exponential moving average: deploy a running mean of the weights.

    v <- d v + (1 - d) w after each step,   d = min(decay, (1 + t) / (10 + t));   deployed is v

Paper    Polyak and Juditsky, SIAM J. Control Optim. 1992; the warm-up is TensorFlow's
Code     none
Cost     2 forward, 1 backward, 1 update (the second forward pass, at the mean, is for its running statistics: one
         each time a hundredth of the mean is replaced, at decay 0.999 every tenth step; none without BatchNorm)
Limits   decay = 0 deploys the weights as they are; training itself is always Plain's
Differs  running statistics are the mean's own, measured at its weights; timm averages those of the weights.
         Combine it with any method that deploys the weights it trains: sam+ema
Start    decay 0.999 (small data) to 0.9998
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput, WeightAverage, hyper


@dataclass(frozen=True)
class EMA(Method[WeightAverage]):
    """Deploy the running mean of the weights."""

    limit: ClassVar = {}
    cost = Cost(2, 1, 1)

    decay: float = hyper(0.999, "d of the mean, after its warm-up", minimum=0, below=1)

    def before(self, batch: Batch, state: WeightAverage, rt: Runtime) -> None:
        state.measure_if_due(rt, batch, partial(state.warm_up, self.decay))

    def after(self, batch: Batch, out: StepOutput, state: WeightAverage, rt: Runtime) -> None:
        state.update(rt.net, rt.number(partial(state.warm_up, self.decay)))

    def deployed_weights(self, net: nn.Module, state: WeightAverage) -> AbstractContextManager[None]:
        return state.swapped_in(net) if state.count else nullcontext()
