"""Whole training steps: networks beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from steppe import hardware, methods, models
from steppe.bench.data import NONE, endless, random_images
from steppe.bench.timing import TimingSpread, alternating, at_least_one, per_step, spread
from steppe.core.batch import Batch
from steppe.training.evaluation import to_model_format

USUAL_MODELS = ("simple-cnn", "resnet-thin", "resnet32", "cifar10-fast")


@dataclass(frozen=True)
class TrainingCost:
    """The price of a training step: of the first one's, with its parameters, and in milliseconds."""

    what: str
    of_first: TimingSpread
    parameters: int
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def models_cost(
    names: Sequence[str] = USUAL_MODELS,
    *,
    batch: int = 64,
    size: int = 32,
    steps: int = 3,
    repeats: int = 7,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[TrainingCost]:
    """Return what a plain step of each network costs, as a multiple of the first one's.

    Args:
        names: Names of networks.
        batch: Images per step.
        size: Side of the images in pixels.
        steps: Steps per timing.
        repeats: Timings of each.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a network does not exist or does not take these images.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    whole = _in_memory(batch, size)
    works = {name: _Training("plain", name, size) for name in dict.fromkeys(names)}
    return _compared({n: (w, partial(w.step, whole)) for n, w in works.items()}, steps, repeats, tell)


class _Training:
    """A network with its own optimizer and a method bound to it."""

    def __init__(self, spec: str, model: str, size: int):
        torch.manual_seed(0)
        net = models.build(model, classes=10, channels=3, size=size).to(hardware.device())
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(self.net.parameters(), 1e-4, momentum=0.9, fused=True)
        self.bound = methods.parse(spec).bind(self.net, optimizer, steps=10**6, epoch=100)

    def step(self, batch: Batch) -> None:
        """Train on a batch."""
        self.bound(to_model_format(batch, self.bound.runtime.params[0]))


def _in_memory(batch: int, size: int) -> Batch:
    return next(endless(random_images(batch, size), NONE, batch))


def _compared(
    works: dict[str, tuple[_Training, Callable[[], object]]],
    steps: int,
    repeats: int,
    tell: Callable[[int], None],
) -> list[TrainingCost]:
    with hardware.threads(1):
        for _, work in works.values():
            work()
        timed = {name: partial(per_step, work, steps) for name, (_, work) in works.items()}
        times = alternating(timed, repeats, tell)
    first = next(iter(times.values()))
    return [
        TrainingCost(name, spread(t, first), _size(works[name][0].net), 1000 * median(t))
        for name, t in times.items()
    ]


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
