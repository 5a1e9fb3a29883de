"""Speed of our default settings on a CPU over PyTorch's: the same plain steps with each.

Whether freed memory is kept is a property of the process, so each setting has a process of its own; they take
turns. All train the same network on the same batch. The distance between the weights after the first step and
those with PyTorch's settings shows whether the faster setting computes the same.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._isolated import Setup, isolated
from benchmarks.augmentation import NONE, endless, random_images
from benchmarks.models import build
from steppe import hardware
from steppe.bench.timing import TimingSpread, alternating, per_step, spread
from steppe.errors import unknown


@dataclass(frozen=True)
class Setting:
    """Whether a process keeps freed memory, and its memory layout, optimizer implementation and precision."""

    keep_memory: bool = False
    channels_last: bool = False
    fused: bool = False
    bf16: bool = False


PYTORCH = "pytorch"
SETTINGS = {
    PYTORCH: Setting(),
    "memory": Setting(keep_memory=True),
    "channels-last": Setting(channels_last=True),
    "fused": Setting(fused=True),
    "ours": Setting(keep_memory=True, channels_last=True, fused=True),
    "ours-bf16": Setting(keep_memory=True, channels_last=True, fused=True, bf16=True),
}


@dataclass(frozen=True)
class SettingCost:
    """Steps per second over those with PyTorch's settings, and the relative distance of the weights from theirs.

    ``difference`` is the norm of the difference of all weights after one step, over the norm of the weights.
    """

    setting: str
    speed: TimingSpread
    difference: float
    milliseconds: float


def settings_cost(names: Sequence[str], setup: Setup) -> list[SettingCost]:
    """Return the speed of each setting of `SETTINGS`, and of PyTorch's own, in processes that take turns.

    Raises InputError for an unknown name.
    """
    for name in names:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    with ExitStack() as stack:
        steps_of = {
            name: stack.enter_context(
                isolated(name, _timed_steps, SETTINGS[name], setup.model, setup.batch, setup.size)
            )
            for name in dict.fromkeys((PYTORCH, *names))
        }
        for timed in steps_of.values():
            timed(1)  # warm up
        weights = {name: timed(0) for name, timed in steps_of.items()}
        works = {name: partial(timed, setup.steps) for name, timed in steps_of.items()}
        times = alternating(works, setup.repeats, setup.progress)
    reference = weights[PYTORCH]
    return [
        SettingCost(
            name,
            spread(times[PYTORCH], t),
            float(np.linalg.norm(weights[name] - reference) / np.linalg.norm(reference)),
            1000 * median(t),
        )
        for name, t in times.items()
    ]


def _timed_steps(setting: Setting, model: str, batch: int, size: int) -> Callable[[int], Any]:
    """Return a function of n: the mean seconds of n steps, or, for n = 0, all weights."""
    torch.set_num_threads(1)
    if setting.keep_memory:
        hardware.keep_freed_memory()
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    net = build(model, size, layout)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, fused=True if setting.fused else None)
    whole = next(endless(random_images(batch, size), NONE, batch))
    x, y = whole.x.to(hardware.device(), memory_format=layout), whole.y.to(hardware.device())

    def step() -> None:
        torch.manual_seed(1)  # the same dropout in each process
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=setting.bf16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return lambda steps: per_step(step, steps) if steps else _weights(net)


def _weights(net: nn.Module) -> np.ndarray:
    """Return all weights as one vector, in the same order for any memory layout."""
    weights: np.ndarray = np.concatenate([p.detach().cpu().double().flatten().numpy() for p in net.parameters()])
    return weights
