"""What a step costs: methods side by side in one process, as ratios to plain training and to their own floor.

A time by itself says little about a method and much about the machine. So every repeat times each method once,
in an order that rotates, and what is reported are the ratios within a repeat: median and spread. The floor
of a method is what its counted passes cost in plain training: forward passes at the price of a forward pass,
backward passes at the rest of a plain step.

On a processor everything runs in one thread and time is the process's own, which others that want the processor
too do not change, or not by much; on a GPU it is the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from steppe import machine, methods, models
from steppe.batch import Batch
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(names, model, batch, size, steps, repeats, tell)
    finally:
        torch.set_num_threads(threads)


def _measured(
    names: list[str], model: str, batch: int, size: int, steps: int, repeats: int, tell: Callable[[int], None]
) -> list[Cost]:
    works = {name: _Work(name, model, batch, size) for name in names}
    timings: dict[str, list[float]] = {name: [] for name in (*names, FORWARD)}
    for name in names:
        works[name].run(2 * steps)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            timings[name].append(works[name].timed(steps))
        timings[FORWARD].append(works[PLAIN].timed_forward(steps))
        tell(repeat + 1)
    share = median(f / p for f, p in zip(timings[FORWARD], timings[PLAIN], strict=True))
    return [_cost(name, works[name].step, timings, share) for name in names]


def _cost(name: str, step: Step, timings: dict[str, list[float]], share: float) -> Cost:
    ratios = [t / p for t, p in zip(timings[name], timings[PLAIN], strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    forward, backward, updates = step.passes.per_step()
    floor = share * forward + (1 - share) * backward
    middle = median(ratios)
    times = median(timings[name]) * 1000
    return Cost(name, middle, low, high, floor, middle / floor, forward, backward, updates, times)


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

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.batch)

    def timed(self, steps: int) -> float:
        return _seconds(lambda: self.run(steps)) / steps

    def timed_forward(self, steps: int) -> float:
        def forward() -> None:
            with torch.no_grad():
                for _ in range(steps):
                    self.net(self.batch.x)

        return _seconds(forward) / steps


def _seconds(work: Callable[[], None]) -> float:
    if not torch.cuda.is_available():
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start
