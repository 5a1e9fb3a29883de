"""Several averages of the weights in one training, of which the best on the validation data is deployed.

    ema d       v <- v + (1 - d) / (1 - d^t) (w - v) after step t: a running mean from zero, divided by 1 - d^t
    swa         the mean of the weights at the end of each period, from start on
    lawa k      the mean of the weights at the end of the last k periods
    weights     w itself

Paper    Morales-Brotons et al., TMLR 2024, arXiv:2411.18704 (decays); Izmailov et al., UAI 2018, arXiv:1803.05407;
         Kaddour, 2022, arXiv:2209.14981
Code     none
Cost     6 forward, 1 backward, 1 update at most: in every tenth step a forward pass for each average, for its
         running statistics, none without BatchNorm; memory: a copy of the weights for each, k more for LAWA
Limits   training itself is always Plain's
Differs  1. after each validation the output with the best one is chosen; steppe train records all by name, and
            steppe export --output NAME exports one. In a loop of your own: method.choose(step.state, ranks).
            Until then the first average is deployed.
         2. a running mean of few networks counts them equally; ema has TensorFlow's warm-up instead.
         3. running statistics are the averages' own, measured at their weights.
         4. device = 'cpu' keeps the averages on the host: the weights are copied there once a step, or with
            update = 10 in every tenth step, with decay d^10.
Start    the defaults: half-lives of 69, 693 and 6,931 steps; combine it with any method that deploys the weights
         it trains: sam+averages
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from steppe.core.method import (
    Batch,
    Cost,
    Method,
    Runtime,
    StepOutput,
    WeightAverage,
    WindowAverage,
    call_for_logits,
    hyper,
)
from steppe.core.method.periods import PERIODS, is_period, period_ends

MEASURED = 10  # an average's statistics, BatchNorm's window of ten passes, are those of a hundred steps


def _are_decays(text: float | str) -> bool:
    try:
        return all(0 <= float(d) < 1 for d in str(text).split())
    except ValueError:
        return False


def _ordered(rank: Any) -> list[float]:
    """Return a rank of one number or several, in which NaN is the lowest."""
    return [-math.inf if math.isnan(r) else r for r in (rank if isinstance(rank, tuple) else (rank,))]


class Family(nn.ModuleList):
    """The averages in the order of `Averages.names`, and which output is deployed."""

    content = "a vector of weights for each average, k more for LAWA"
    chosen = 0

    def get_extra_state(self) -> Tensor:
        """Return the number of the chosen output, for checkpoints."""
        return torch.tensor(self.chosen)

    def set_extra_state(self, state: Tensor) -> None:
        """Load the number of the chosen output."""
        self.chosen = int(state)


@dataclass(frozen=True)
class Averages(Method[Family]):
    """Keep running means of several ``decays``, SWA's mean from ``start`` on, that of the last ``k`` periods."""

    limit: ClassVar = {}
    single = "each average is evaluated as one network"

    decays: float | str = hyper(
        "0.99 0.999 0.9999", "of the running means", valid=_are_decays, remedy="numbers below 1, as '0.99 0.999'"
    )
    k: int = hyper(5, "networks in LAWA's mean; 0 for none", minimum=0)
    swa: bool = hyper(True, "keep SWA's mean")
    start: float = hyper(0.75, "when SWA's mean begins", amount=True)
    every: int | str | None = hyper(
        None, "a period of SWA and LAWA; None: an epoch", valid=is_period, remedy=PERIODS
    )
    update: int = hyper(1, "steps between the updates of the running means", minimum=1)
    device: str = hyper("model", "where the averages are kept", choices=("model", "cpu"))

    @property
    def names(self) -> list[str]:
        """The outputs: the averages, and the weights."""
        emas = [f"ema {d}" for d in str(self.decays).split()]
        return [*emas, *["swa"] * self.swa, *[f"lawa {self.k}"] * (self.k > 0), "weights"]

    @property
    def amounts(self) -> tuple[str, ...]:
        return ("start",) if self.swa else ()

    @property
    def whole(self) -> str:
        return "averages on the host are of whole weights" if self.device == "cpu" else ""

    @property
    def on_host(self) -> str:
        return "the averages are on the host" if self.device == "cpu" else ""

    @property
    def cost(self) -> Cost:
        return Cost(len(self.names), 1, 1)

    def init(self, net: nn.Module) -> Family:
        device = None if self.device == "model" else torch.device("cpu")
        whole = range(len(self.names) - 1 - (self.k > 0))
        window = [WindowAverage(net, self.k, device)] if self.k else []
        return Family([*(WeightAverage(net, device) for _ in whole), *window])

    def before(self, batch: Batch, state: Family, rt: Runtime) -> None:
        if rt.decide(lambda: rt.now.step % MEASURED == 0):
            for name, average in self._named(state):
                if rt.decide(lambda average=average: average.count > 0):  # type: ignore[misc]
                    average.measure(rt, batch, self._weight(name, average, rt))

    def after(self, batch: Batch, out: StepOutput, state: Family, rt: Runtime) -> None:
        """Update the averages that are due."""
        for name, average in self._named(state):
            if rt.decide(lambda name=name: self._is_due(name, rt)):  # type: ignore[misc]
                weight = self._weight(name, average, rt)
                if isinstance(average, WindowAverage):
                    average.store(rt.net)
                else:
                    average.update(rt.net, weight)

    def _is_due(self, name: str, rt: Runtime) -> bool:
        if name.startswith("ema"):
            return (rt.now.step + 1) % self.update == 0
        return period_ends(self.every, rt) and (name != "swa" or rt.now.reached(self.start, "start"))

    def _named(self, state: Family) -> list[tuple[str, WeightAverage]]:
        return list(zip(self.names, cast(list[WeightAverage], state), strict=False))

    def _weight(self, name: str, average: WeightAverage, rt: Runtime) -> Any:
        """Return the next network's weight in an average; a mean of the last ones has it by its count."""
        if isinstance(average, WindowAverage):
            average.decide_place(rt)
            return 1.0
        kind, _, number = name.partition(" ")
        if kind == "ema":
            return rt.number(lambda: average.debiased(float(number) ** self.update))
        return rt.number(lambda: 1 / (average.count + 1))

    def choose(self, state: Family, ranks: Mapping[str, Any]) -> str | None:
        best = max((name for name in self.names if name in ranks), key=lambda n: _ordered(ranks[n]), default=None)
        if best is not None:
            state.chosen = self.names.index(best)
        return best

    def outputs(self, net: nn.Module, state: Family, x: Any) -> dict[str, Tensor]:
        named = {}
        for i, name in enumerate(self.names):
            with self._at(net, state, i):
                named[name] = call_for_logits(net, x)
        return {"deployed": named[self.names[state.chosen]], **named}

    def deployed_weights(self, net: nn.Module, state: Family) -> AbstractContextManager[None]:
        return self._at(net, state, state.chosen)

    def _at(self, net: nn.Module, state: Family, i: int) -> AbstractContextManager[None]:
        average = cast(WeightAverage, state[i]) if i < len(state) else None
        return average.swapped_in(net) if average is not None and average.count else nullcontext()
