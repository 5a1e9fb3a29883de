"""SAM in a loop of one's own on a CPU, over two plain passes and an update, with and without our memory setting.

``steppe`` commands make glibc keep freed memory; a script that calls `bind` does not. With glibc's defaults freed
activations may return to the kernel and are faulted in again, which depends on what lives above them in the heap.
Each contestant therefore has a process of its own, a new one in each repeat, and the processes take turns.
"""

import resource
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import mean, median

import torch
from torch import Tensor, nn

from benchmarks._isolated import isolated
from benchmarks.small_steps import plain_pass, sam_by_hand, sgd
from steppe import hardware, methods
from steppe.bench.timing import TimingSpread, at_least_one, no_progress, per_step, spread

_DEPTH, _CHANNELS, _BATCH = 36, 16, 32
REFERENCE = "two plain passes and an update"
CONTESTANTS = (REFERENCE, "SAM by hand", "sam")


@dataclass(frozen=True)
class OwnLoopCost:
    """Time of a step over that of two plain passes and an update, and the pages that it faults in."""

    step: str
    memory: str
    ratio: TimingSpread
    page_faults: float
    milliseconds: float


def own_loop_cost(
    *, size: int, steps: int, repeats: int, progress: Callable[[int], None] = no_progress
) -> list[OwnLoopCost]:
    """Return the cost of a step of each contestant with glibc's defaults, and with memory kept."""
    at_least_one(size=size, steps=steps, repeats=repeats)
    return [cost for keep in (False, True) for cost in _costs(keep, size, steps, repeats, progress)]


def _costs(keep: bool, size: int, steps: int, repeats: int, progress: Callable[[int], None]) -> list[OwnLoopCost]:
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    faults: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for repeat in range(repeats):
        with ExitStack() as stack:
            remote = {n: stack.enter_context(isolated(n, _remote, n, keep, size)) for n in CONTESTANTS}
            for measured in remote.values():
                measured(2)  # warm up
            for name in (*CONTESTANTS[repeat % 3 :], *CONTESTANTS[: repeat % 3]):
                seconds, pages = remote[name](steps)
                times[name].append(seconds)
                faults[name].append(pages)
        progress(repeat + 1)
    return [
        OwnLoopCost(
            name,
            "kept" if keep else "glibc's defaults",
            spread(times[name], times[REFERENCE]),
            mean(faults[name]),
            1000 * median(times[name]),
        )
        for name in CONTESTANTS
    ]


def _remote(name: str, keep: bool, size: int) -> Callable[[int], tuple[float, float]]:
    """Return a function that makes so many steps, and returns seconds and page faults of the mean one."""
    torch.set_num_threads(1)
    if keep:
        hardware.keep_freed_memory()
    step = _step(name, network(), torch.randn(_BATCH, 3, size, size), torch.arange(_BATCH) % 10)

    def measured(steps: int) -> tuple[float, float]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = per_step(step, steps)
        return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

    return measured


def network() -> nn.Sequential:
    """Return 36 convolutions of 16 channels."""
    torch.manual_seed(0)
    widths = [3, *[_CHANNELS] * _DEPTH]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_CHANNELS, 10))


def _step(name: str, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    if name == REFERENCE:
        return _two_passes(net, x, y)
    if name in CONTESTANTS[1:2]:
        return sam_by_hand(net, x, y)
    return partial(methods.parse(name).bind(net, sgd(net)), x, y)


def _two_passes(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = sgd(net)

    def step() -> None:
        for _ in range(2):
            plain_pass(net, x, y, optimizer)
        optimizer.step()

    return step
