"""Cost of a plain training step of each network, as a multiple of the first one's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import nn

from benchmarks.augmentation import NONE, endless, random_images
from steppe import hardware, methods, models
from steppe.bench.timing import TimingSpread, alternating, at_least_one, no_progress, per_step, spread
from steppe.core.batch import Batch
from steppe.training.evaluation import to_model_format

DEFAULT_MODELS = ("simple-cnn", "resnet-thin", "resnet32", "cifar10-fast")


@dataclass(frozen=True)
class ModelCost:
    """Time of a training step: over that of the first network, and in milliseconds; number of parameters."""

    model: str
    of_first: TimingSpread
    parameters: int
    milliseconds: float


def models_cost(
    names: Sequence[str],
    *,
    batch: int,
    size: int,
    steps: int,
    repeats: int,
    progress: Callable[[int], None] = no_progress,
) -> list[ModelCost]:
    """Return what a plain step of each network costs on images of ``size`` x ``size`` pixels.

    Raises InputError for a number below 1, and a network that is unknown or does not take these images.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    images = next(endless(random_images(batch, size), NONE, batch))
    nets = {name: build(name, size, torch.channels_last) for name in dict.fromkeys(names)}
    works = {name: partial(plain_step(net), images) for name, net in nets.items()}
    with hardware.threads(1):
        for work in works.values():
            work()
        timed = {name: partial(per_step, work, steps) for name, work in works.items()}
        times = alternating(timed, repeats, progress)
    first = next(iter(times.values()))
    return [
        ModelCost(name, spread(t, first), sum(p.numel() for p in nets[name].parameters()), 1000 * median(t))
        for name, t in times.items()
    ]


def build(model: str, size: int, layout: torch.memory_format) -> nn.Module:
    """Return a network for images of this size in 10 classes, in a memory layout."""
    torch.manual_seed(0)
    net: nn.Module = models.build(model, classes=10, channels=3, size=size).to(hardware.device())
    return net.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def plain_step(net: nn.Module) -> Callable[[Batch], object]:
    """Return a plain step of ours on a network, with fused SGD."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, fused=True)
    bound = methods.parse("plain").bind(net, optimizer, steps=10**6, epoch=100)
    param = next(net.parameters())
    return lambda batch: bound(to_model_format(batch, param))
