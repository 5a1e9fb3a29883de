"""What the settings of a run on a processor buy: the same plain steps with PyTorch's and with ours.

How memory is handed back belongs to a whole process, so each setting has a process of its own; they take turns.
All train the same network on the same batch; how far the first step takes their weights from those of PyTorch's
settings says whether what is faster is also the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from steppe import hardware, models
from steppe.bench.apart import apart
from steppe.bench.data import NONE, endless, random_images
from steppe.bench.timing import TimingSpread, alternating, at_least_one, per_step, spread
from steppe.errors import unknown

_RATE = 1e-3


@dataclass(frozen=True)
class Setting:
    """How a process computes: whether it keeps freed memory, its memory layout, its optimizer, its precision."""

    kept: bool = False
    channels_last: bool = False
    fused: bool = False
    bf16: bool = False


PYTORCH = "pytorch"
SETTINGS = {
    PYTORCH: Setting(),
    "memory": Setting(kept=True),
    "channels-last": Setting(channels_last=True),
    "fused": Setting(fused=True),
    "ours": Setting(kept=True, channels_last=True, fused=True),
    "ours-bf16": Setting(kept=True, channels_last=True, fused=True, bf16=True),
}


@dataclass(frozen=True)
class SettingCost:
    """A setting's steps per second over those of PyTorch's settings, and how far from theirs its first step ends.

    ``differs`` is the norm of the difference of all weights over the norm of the weights.
    """

    setting: str
    speed: TimingSpread
    differs: float
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def settings_cost(
    names: Sequence[str] = tuple(SETTINGS),
    *,
    model: str = "simple-cnn",
    batch: int = 64,
    size: int = 32,
    steps: int = 3,
    repeats: int = 7,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[SettingCost]:
    """Return what each setting's step costs beside PyTorch's own settings, in processes that take turns.

    Args:
        names: Of `SETTINGS`; PyTorch's are always there.
        model: Name of a network.
        batch: Images per step.
        size: Side of the images in pixels.
        steps: Steps per timing.
        repeats: Timings of each.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a name is unknown.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    for name in names:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    with torch.random.fork_rng():
        models.build(model, classes=10, channels=3, size=size)  # in this process, whose errors are one line
    wanted = dict.fromkeys((PYTORCH, *names))
    with ExitStack() as stack:
        asked = {n: stack.enter_context(apart(n, _work, SETTINGS[n], model, batch, size)) for n in wanted}
        for ask in asked.values():
            ask(1)  # the first step is none like the others
        weights = {name: ask(0) for name, ask in asked.items()}
        times = alternating({name: partial(ask, steps) for name, ask in asked.items()}, repeats, tell)
    first = weights[PYTORCH]
    return [
        SettingCost(
            name,
            spread(times[PYTORCH], t),
            float(np.linalg.norm(weights[name] - first) / np.linalg.norm(first)),
            1000 * median(t),
        )
        for name, t in times.items()
    ]


def _work(setting: Setting, model: str, batch: int, size: int) -> Callable[[int], Any]:
    """Return what gives the seconds of one of so many steps, or of 0 all weights."""
    torch.set_num_threads(1)
    if setting.kept:
        hardware.keep_freed_memory()
    torch.manual_seed(0)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    built = models.build(model, classes=10, channels=3, size=size).to(hardware.device())
    net: nn.Module = built.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), _RATE, momentum=0.9, fused=True if setting.fused else None)
    whole = next(endless(random_images(batch, size), NONE, batch))
    x, y = whole.x.to(hardware.device(), memory_format=layout), whole.y.to(hardware.device())

    def step() -> None:
        torch.manual_seed(1)  # dropout of each step is the same, whatever came before
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=setting.bf16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return lambda steps: per_step(step, steps) if steps else _weights(net)


def _weights(net: nn.Module) -> np.ndarray:
    """Return all weights as one vector, in the same order whatever their layout."""
    found: np.ndarray = np.concatenate([p.detach().cpu().double().flatten().numpy() for p in net.parameters()])
    return found
