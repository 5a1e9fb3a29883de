"""How things are timed against each other: in turns, in one process, as ratios within a repeat.

A time by itself says little about what is measured and much about the machine. So every repeat times each thing
once, in an order that rotates, and what is reported is the ratio within a repeat, or to what was timed right
before and after: median and quartiles.

On a processor everything runs in one thread and time is the process's own, which others that want the processor
too do not change, or not by much; on a GPU it is the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from steppe.errors import InputError


@dataclass(frozen=True)
class TimingSpread:
    """A ratio over repeats: its median and quartiles."""

    median: float
    low: float
    high: float


def spread(times: Sequence[float], base: Sequence[float]) -> TimingSpread:
    """Return how many times as long as ``base``, repeat by repeat."""
    ratios = [t / b for t, b in zip(times, base, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return TimingSpread(median(ratios), low, high)


def alternating(
    works: Mapping[str, Callable[[], float]], repeats: int, tell: Callable[[int], None] = lambda repeat: None
) -> dict[str, list[float]]:
    """Return the times of each work, which says itself how long it took, a repeat at a time in rotating order."""
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(works[name]())
        tell(repeat + 1)
    return times


def beside(
    base: Callable[[], float],
    works: Mapping[str, Callable[[], float]],
    repeats: int,
    tell: Callable[[int], None] = lambda repeat: None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the times of each work as `alternating` does, and those of ``base`` right beside it.

    Base is timed between any two works, and the mean of the one before and the one after is a work's own: where
    many works make a repeat long, the machine is another one at its end.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    bases: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats):
        names = list(works)
        turn = repeat % len(names)
        before = base()
        for name in names[turn:] + names[:turn]:
            times[name].append(works[name]())
            after = base()
            bases[name].append((before + after) / 2)
            before = after
        tell(repeat + 1)
    return times, bases


def now() -> float:
    """Return seconds: processor time of this process, or, where there is a GPU, the time when it is done."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes, see `now`."""
    start = now()
    work()
    return now() - start


def per_step(step: Callable[[], object], steps: int) -> float:
    """Return how long one of so many steps takes."""

    def work() -> None:
        for _ in range(steps):
            step()

    return seconds(work) / steps


def at_least_one(**numbers: int) -> None:
    """Raise InputError for the first of the numbers that is below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
