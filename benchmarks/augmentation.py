"""Cost of making a batch: each augmentation as a multiple of batches without any."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from steppe import hardware
from steppe.bench.timing import TimingSpread, alternating, at_least_one, no_progress, per_step, spread
from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.transforms.registry import STEPS

NONE = "none"
DEFAULT_CHAINS = (*STEPS, "crop+flip+cutmix")


@dataclass(frozen=True)
class DataCost:
    """Time of a batch with these steps: over that of one without, and in milliseconds."""

    steps: str
    of_none: TimingSpread
    milliseconds: float


def data_cost(
    chains: Sequence[str],
    *,
    batch: int,
    size: int,
    steps: int,
    repeats: int,
    progress: Callable[[int], None] = no_progress,
) -> list[DataCost]:
    """Return what batches of random images cost to make, for each chain of steps joined by '+'.

    Raises InputError for a number below 1 and an unknown step.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    images = random_images(20 * batch, size)
    works = {name: endless(images, name, batch) for name in dict.fromkeys([NONE, *chains])}
    with hardware.threads(1):
        for work in works.values():
            next(work)
        timed = {name: partial(per_step, partial(next, work), steps) for name, work in works.items()}
        times = alternating(timed, repeats, progress)
    return [DataCost(name, spread(t, times[NONE]), 1000 * median(t)) for name, t in times.items()]


def random_images(count: int, size: int) -> Images:
    """Return images of noise in 10 classes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, size, size), generator=g, dtype=torch.uint8)
    return Images(x, torch.arange(count) % 10)


def loader(images: Images, chain: str, batch: int) -> Loader:
    """Return the loader of training batches; raises InputError for an unknown step."""
    return Loader(
        images,
        classes=10,
        batch=batch,
        augment=[] if chain == NONE else chain.split("+"),
        normalize=Normalizer.of("unit", images),
        seed=0,
        device=hardware.device(),
    )


def endless(images: Images, chain: str, batch: int) -> Iterator[Batch]:
    """Return training batches, epoch after epoch; raises InputError for an unknown step."""
    batches = loader(images, chain, batch)

    def epochs() -> Iterator[Batch]:
        number = 0
        while True:
            yield from batches.epoch(number)
            number += 1

    return epochs()
