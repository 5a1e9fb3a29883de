"""What a step costs: methods side by side in one process, as ratios to plain training and to their own floor.

The floor of a method is what its counted passes cost in plain training: forward passes at the price of a forward
pass, backward passes at the rest of a plain step. How they are timed: `steppe.bench.clock`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from steppe import machine, methods, models
from steppe.batch import Batch
from steppe.bench.clock import alternating, one_thread, per_step, spread
from steppe.errors import InputError
from steppe.step import Step

PLAIN, FORWARD = "plain", "(forward)"


@dataclass(frozen=True)
class Cost:
    """A method's price: step time as a multiple of plain's, with quartiles, and of its floor; its passes."""

    method: str
    ratio: float
    low: float
    high: float
    floor: float
    over_floor: float
    forward: float
    backward: float
    updates: float
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def methods_cost(
    specs: Sequence[str],
    *,
    model: str = "simple-cnn",
    batch: int = 64,
    size: int = 32,
    steps: int = 5,
    repeats: int = 15,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[Cost]:
    """Return what a step of each method costs on random images.

    Args:
        specs: Methods, as on the command line.
        model: Name of a model.
        batch: Images per step.
        size: Side of the images in pixels.
        steps: Steps per timing; a whole number of a method's period keeps LookSAM and the like in step.
        repeats: Timings of each method.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a method or model does not exist.
    """
    for name, value in {"batch": batch, "size": size, "steps": steps, "repeats": repeats}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    names = [PLAIN, *(s for s in dict.fromkeys(specs) if s != PLAIN)]
    with one_thread():
        return _measured(names, model, batch, size, steps, repeats, tell)


def _measured(
    names: list[str], model: str, batch: int, size: int, steps: int, repeats: int, tell: Callable[[int], None]
) -> list[Cost]:
    works = {name: _Work(name, model, batch, size) for name in names}
    for work in works.values():
        per_step(work.once, 2 * steps)
    timed: dict[str, Callable[[], float]] = {n: partial(per_step, work.once, steps) for n, work in works.items()}
    timed[FORWARD] = partial(per_step, works[PLAIN].forward, steps)
    timings = alternating(timed, repeats, tell)
    share = spread(timings[FORWARD], timings[PLAIN]).median
    return [_cost(name, works[name].step, timings, share) for name in names]


def _cost(name: str, step: Step, timings: dict[str, list[float]], share: float) -> Cost:
    ratio = spread(timings[name], timings[PLAIN])
    forward, backward, updates = step.passes.per_step()
    floor = share * forward + (1 - share) * backward
    over, times = ratio.median / floor, median(timings[name]) * 1000
    return Cost(name, ratio.median, ratio.low, ratio.high, floor, over, forward, backward, updates, times)


class _Work:
    """A method bound to a model of its own, and a batch."""

    def __init__(self, spec: str, model: str, batch: int, size: int):
        device = machine.device()
        torch.manual_seed(0)
        net = models.build(model, classes=10, channels=3, size=size).to(device)
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        self.batch = Batch(x, torch.arange(batch, device=device) % 10, torch.arange(batch))
        optimizer = torch.optim.SGD(self.net.parameters(), 1e-4, momentum=0.9, fused=True)
        self.step = methods.parse(spec).bind(self.net, optimizer, steps=10**6)

    def once(self) -> None:
        """Make a step."""
        self.step(self.batch)

    def forward(self) -> None:
        """Make a forward pass."""
        with torch.no_grad():
            self.net(self.batch.x)
