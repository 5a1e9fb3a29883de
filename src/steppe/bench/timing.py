"""Timings compared with each other: interleaved in one process, as ratios within a repeat.

An absolute time says little about the code and much about the machine. So every repeat times each candidate once,
in an order that rotates, and the result is the ratio within a repeat, or to the reference timed right before and
after: median and quartiles.

On a CPU everything runs in one thread, and time is the process's own CPU time, which other processes change
little. On a GPU it is wall-clock time after synchronising.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from steppe.errors import InputError


def no_progress(repeat: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class TimingSpread:
    """A ratio over repeats: its median and quartiles."""

    median: float
    low: float
    high: float


def spread(times: Sequence[float], reference: Sequence[float]) -> TimingSpread:
    """Return the ratio of ``times`` to ``reference``, repeat by repeat."""
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return TimingSpread(median(ratios), low, high)


def alternating(
    works: Mapping[str, Callable[[], float]], repeats: int, progress: Callable[[int], None] = no_progress
) -> dict[str, list[float]]:
    """Call each work once per repeat, in rotating order; return the times that the works report."""
    times, _ = alternating_with_reference(lambda: 0.0, works, repeats, progress)
    return times


def alternating_with_reference(
    reference: Callable[[], float],
    works: Mapping[str, Callable[[], float]],
    repeats: int,
    progress: Callable[[int], None] = no_progress,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the times of each work as `alternating` does, and those of ``reference`` around each of them.

    The reference is timed between any two works. Each work is compared with the mean of the one before and the one
    after it: a repeat of many works is long, and the machine changes speed within it.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    references: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for repeat in range(repeats):
        first = repeat % len(names)
        before = reference()
        for name in names[first:] + names[:first]:
            times[name].append(works[name]())
            after = reference()
            references[name].append((before + after) / 2)
            before = after
        progress(repeat + 1)
    return times, references


def now() -> float:
    """Return seconds: this process's CPU time; where there is a GPU, wall-clock time once it is idle."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def per_step(step: Callable[[], object], steps: int) -> float:
    """Return the mean seconds of a step over ``steps`` of them, see `now`."""
    start = now()
    for _ in range(steps):
        step()
    return (now() - start) / steps


def at_least_one(**numbers: int) -> None:
    """Raise InputError for the first of the numbers that is below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
