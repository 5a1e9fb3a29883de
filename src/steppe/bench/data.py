"""What a batch costs before it reaches the network: each augmentation beside batches without any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from steppe import hardware
from steppe.bench.timing import TimingSpread, alternating, at_least_one, per_step, spread
from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.transforms.registry import STEPS

NONE = "none"
USUAL = (*STEPS, "crop+flip+cutmix")


@dataclass(frozen=True)
class DataCost:
    """The price of a batch with these steps: of one without, and by itself in milliseconds."""

    steps: str
    of_none: TimingSpread
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def data_cost(
    chains: Sequence[str] = USUAL,
    *,
    batch: int = 128,
    size: int = 32,
    steps: int = 5,
    repeats: int = 15,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[DataCost]:
    """Return what batches of random images cost to make.

    Args:
        chains: Steps of ``data.augment``, joined by '+'.
        batch: Images per batch.
        size: Side of the images in pixels.
        steps: Batches per timing.
        repeats: Timings of each.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a step does not exist.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    images = random_images(20 * batch, size)
    works = {name: endless(images, name, batch) for name in dict.fromkeys([NONE, *chains])}
    with hardware.threads(1):
        for work in works.values():
            next(work)
        timed = {name: partial(per_step, partial(next, work), steps) for name, work in works.items()}
        times = alternating(timed, repeats, tell)
    return [DataCost(name, spread(t, times[NONE]), 1000 * median(t)) for name, t in times.items()]


def random_images(count: int, size: int) -> Images:
    """Return noise of 10 classes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, size, size), generator=g, dtype=torch.uint8)
    return Images(x, torch.arange(count) % 10)


def loader(images: Images, chain: str, batch: int) -> Loader:
    """Return what makes training batches, epoch by epoch; raises InputError for an unknown step."""
    augment = [] if chain == NONE else chain.split("+")
    normalize = Normalizer.of("unit", images)
    return Loader(
        images,
        classes=10,
        batch=batch,
        augment=augment,
        normalize=normalize,
        seed=0,
        device=hardware.device(),
    )


def endless(images: Images, chain: str, batch: int) -> Iterator[Batch]:
    """Yield training batches, epoch after epoch; raises InputError for an unknown step."""
    made = loader(images, chain, batch)

    def batches() -> Iterator[Batch]:
        number = 0
        while True:
            yield from made.epoch(number)
            number += 1

    return batches()
