"""What a step of each method costs, as a ratio to plain training and to a floor, interleaved in one process.

The floor of a method is what its counted passes cost in plain training: forward passes at the price of a forward
pass, backward passes at the rest of a plain step. Plain training is timed right before and after each method,
itself included: its own line shows the noise of the measurement. The overhead of a step, its time outside its
passes, is timed within the step and so more precisely. An optimizer of another package (``module:Class``) runs in
the loop that its users write, with the same network, memory layout and base optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steppe import hardware, methods, models
from steppe.bench.memory import peak_bytes
from steppe.bench.passes import TimedSteps, overhead
from steppe.bench.timing import (
    TimingSpread,
    alternating_with_reference,
    at_least_one,
    no_progress,
    per_step,
    spread,
)
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.testing.fixtures import BaseOptimizer
from steppe.testing.resolve import subjects_of
from steppe.testing.subjects import OurMethod
from steppe.testing.third_party import ThirdParty

PLAIN, FORWARD = "plain", "(forward)"
_LR, _MOMENTUM = 1e-4, 0.9


@dataclass(frozen=True)
class StepCost:
    """Cost of a method's step: time as a multiple of plain's, with quartiles, and of its floor; passes; memory.

    ``overhead`` is the time outside forward and backward passes, minus that of as many plain steps, as a share of
    the floor; None on a GPU, where passes do not end when their calls do. ``memory`` is the peak of all tensors
    during a step (weights, states and activations) as a multiple of plain's. ``over_floor_default`` is
    ``over_floor`` with the C library's memory settings, as in a script that calls `bind`; None if not measured.
    """

    method: str
    ratio: float
    low: float
    high: float
    floor: float
    over_floor: float
    overhead: TimingSpread | None
    forward: float
    backward: float
    updates: float
    milliseconds: float
    memory: float
    over_floor_default: float | None = None


def methods_cost(
    specs: Sequence[str],
    *,
    model: str = "simple-cnn",
    batch: int = 64,
    size: int = 32,
    steps: int = 5,
    repeats: int = 15,
    progress: Callable[[int], None] = no_progress,
) -> list[StepCost]:
    """Return what a step of each method costs on random images.

    Args:
        specs: Methods, as on the command line; ``module:Class`` for an optimizer of another package.
        model: Name of a model.
        batch: Images per step.
        size: Side of the images in pixels.
        steps: Steps per timing; for LookSAM and the like, give a multiple of the method's period.
        repeats: Timings of each method.
        progress: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a method, an optimizer or a model does not exist.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    names = [PLAIN, *(s for s in dict.fromkeys(specs) if s != PLAIN)]

    with hardware.threads(1):
        return _measure(names, lambda name: contestant(name, model, batch, size), steps, repeats, progress)


def _measure(
    names: list[str], new: Callable[[str], _Contestant], steps: int, repeats: int, progress: Callable[[int], None]
) -> list[StepCost]:
    contestants = {name: new(name) for name in names}
    for name in names:
        per_step(contestants[name].step, 2 * steps)
    works = {**{name: one.step for name, one in contestants.items()}, FORWARD: contestants[PLAIN].forward}
    timed = {name: TimedSteps(work, steps, hooked=not torch.cuda.is_available()) for name, work in works.items()}
    times, plain_times = alternating_with_reference(timed[PLAIN], timed, repeats, progress)
    ratios = {name: spread(t, plain_times[name]) for name, t in times.items()}
    forward_share = ratios[FORWARD].median
    plain_seconds = median(plain_times[PLAIN])
    outside = {name: one.outside for name, one in timed.items()}
    passes = {name: one.passes_per_step() for name, one in contestants.items()}
    del contestants, works, timed  # frees the networks before memory is measured
    memory = {name: peak_bytes(lambda name=name: new(name).step) for name in names}  # type: ignore[misc]
    costs = []
    for name in names:
        (forward, backward, updates), ratio = passes[name], ratios[name]
        floor = forward_share * forward + (1 - forward_share) * backward
        extra = overhead(outside[name], outside[PLAIN], backward, floor * plain_seconds) if outside[name] else None
        costs.append(
            StepCost(
                method=name,
                ratio=ratio.median,
                low=ratio.low,
                high=ratio.high,
                floor=floor,
                over_floor=ratio.median / floor,
                overhead=extra,
                forward=forward,
                backward=backward,
                updates=updates,
                milliseconds=1000 * median(times[name]),
                memory=memory[name] / memory[PLAIN],
            )
        )
    return costs


class _Contestant:
    """The network or networks of a method, a batch with as many views as the method takes, and steps on it."""

    def __init__(self, method: Method, model: str, batch: int, size: int):
        device = hardware.device()
        torch.manual_seed(0)
        net = method.build(lambda: models.build(model, classes=10, channels=3, size=size)).to(device)
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        views = {f"view {i}": x for i in range(2, method.views + 1)}
        index = torch.arange(batch, device=device)
        self.batch = Batch(x, index % 10, index, views)

    def step(self) -> None:
        """Make a step."""
        raise NotImplementedError

    def passes_per_step(self) -> tuple[float, float, float]:
        """Return forward passes, backward passes and updates of the mean step."""
        raise NotImplementedError

    def forward(self) -> None:
        """Make a forward pass."""
        with torch.no_grad():
            self.net(self.batch.x)


class _BoundMethod(_Contestant):
    """A method of ours, bound to the network."""

    def __init__(self, method: Method, *setup: Any):
        super().__init__(method, *setup)
        optimizer = torch.optim.SGD(self.net.parameters(), _LR, momentum=_MOMENTUM, fused=True)
        self.bound = method.bind(self.net, optimizer, steps=10**6)

    def step(self) -> None:
        self.bound(self.batch)

    def passes_per_step(self) -> tuple[float, float, float]:
        return self.bound.passes.per_step()


class _OtherOptimizer(_Contestant):
    """Another package's optimizer, in the loop that it documents."""

    def __init__(self, party: ThirdParty, *setup: Any):
        super().__init__(methods.parse(PLAIN), *setup)
        base = BaseOptimizer(torch.optim.SGD, {"lr": _LR, "momentum": _MOMENTUM, "fused": True})
        self.optimizer, self.form = party.make(self.net, base), party.form
        self.passes = self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.form == "closure":
            self.optimizer.step(self._closure)
            self.optimizer.zero_grad()
            return
        self._pass()
        self.optimizer.first_step(zero_grad=True)
        self._pass()
        self.optimizer.second_step(zero_grad=True)

    def _closure(self) -> Tensor:
        self.optimizer.zero_grad()
        return self._pass()

    def _pass(self) -> Tensor:
        self.passes += 1
        loss = F.cross_entropy(self.net(self.batch.x), self.batch.y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def passes_per_step(self) -> tuple[float, float, float]:
        passes = self.passes / self.steps
        return passes, passes, 1.0


def contestant(spec: str, model: str, batch: int, size: int) -> _Contestant:
    """Return a method of ours, or an optimizer of another package, with a network and random images."""
    setup = model, batch, size
    (subject,) = subjects_of([spec])
    if isinstance(subject, OurMethod):
        return _BoundMethod(subject.method, *setup)
    assert isinstance(subject, ThirdParty)
    return _OtherOptimizer(subject, *setup)
