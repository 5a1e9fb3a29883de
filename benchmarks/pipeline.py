"""From images to updated weights: wall-clock time of epochs, next to a batch in memory and to PyTorch's loop.

Each contestant has a process of its own with PyTorch's default number of threads, and workers if it has any; they
take turns, an epoch at a time, and start an epoch with nothing prefetched. The usual loop is that of PyTorch's
tutorials in its default memory layout: on a batch in memory, and, where torchvision is installed, fed by a
DataLoader whose workers decode, crop and flip each image and mix batches with torchvision.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks._isolated import Setup, isolated
from benchmarks.augmentation import NONE, endless, loader, random_images
from benchmarks.models import build, plain_step
from steppe import hardware
from steppe.bench.timing import TimingSpread, alternating, spread
from steppe.data.dataset import Images
from steppe.training.evaluation import to_model_format

DEFAULT_CHAINS = ("crop+flip+cutmix", NONE)
WORKERS = 2
MEMORY, LOOP = "a batch in memory", "PyTorch's loop, a batch in memory"
TORCHVISION = f"PyTorch's loop, torchvision, {WORKERS} workers"


@dataclass(frozen=True)
class EndToEndCost:
    """Images per second, over those from a batch in memory and over those of the loop with torchvision.

    ``of_torchvision`` is None where torchvision is not installed; ``milliseconds`` are those of a step.
    """

    batches: str
    of_memory: TimingSpread
    of_torchvision: TimingSpread | None
    milliseconds: float


def end_to_end_cost(chains: Sequence[str], setup: Setup) -> list[EndToEndCost]:
    """Return how fast a network trains from images, with each chain of augmentation; an epoch has ``steps`` steps.

    Raises InputError for an unknown name.
    """
    # in this process first, where a wrong name is an error of one line
    for chain in chains:
        endless(random_images(setup.batch, setup.size), chain, setup.batch)
    shape = (setup.model, setup.batch, setup.size, setup.steps)
    with ExitStack() as stack:
        epochs = {MEMORY: stack.enter_context(isolated(MEMORY, _ours, None, *shape))}
        for chain in dict.fromkeys(chains):
            epochs[chain] = stack.enter_context(isolated(chain, _ours, chain, *shape))
        epochs[LOOP] = stack.enter_context(isolated(LOOP, _usual_loop, False, *shape))
        if _torchvision_loads():
            epochs[TORCHVISION] = stack.enter_context(isolated(TORCHVISION, _usual_loop, True, *shape))
        for epoch in epochs.values():
            epoch(0)  # warm up
        works = {name: partial(epoch, 1) for name, epoch in epochs.items()}
        times = alternating(works, setup.repeats, setup.progress)
    torchvision = times.get(TORCHVISION)
    return [
        EndToEndCost(
            name,
            spread(times[MEMORY], t),
            None if torchvision is None else spread(torchvision, t),
            1000 * median(t) / setup.steps,
        )
        for name, t in times.items()
    ]


def _torchvision_loads() -> bool:
    try:
        import torchvision.transforms.v2  # noqa: F401
    except (ImportError, RuntimeError):  # its compiled part may be another torch's
        return False
    return True


def _ours(chain: str | None, model: str, batch: int, size: int, steps: int) -> Callable[[int], float]:
    """Return a function that trains an epoch as ``steppe train`` does; without a chain on one batch repeatedly."""
    hardware.keep_freed_memory()
    net = build(model, size, torch.channels_last)
    step = plain_step(net)
    images = random_images(steps * batch, size)
    if chain is None:
        in_memory = to_model_format(next(endless(images, NONE, batch)), next(net.parameters()))
        return partial(_epoch_seconds, step, lambda number: (in_memory for _ in range(steps)))
    return partial(_epoch_seconds, step, loader(images, chain, batch).epoch)


def _usual_loop(torchvision: bool, model: str, batch: int, size: int, steps: int) -> Callable[[int], float]:
    """Return a function that trains an epoch as PyTorch's tutorials do."""
    net = build(model, size, torch.contiguous_format)
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)
    device = hardware.device()
    images = random_images(steps * batch, size)

    def step(pair: tuple[Tensor, Tensor]) -> None:
        x, y = (t.to(device, non_blocking=True) for t in pair)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if torchvision:
        batches = _torchvision_loader(images, size, batch)
        return partial(_epoch_seconds, step, lambda number: batches)
    whole = next(endless(images, NONE, batch))
    in_memory = whole.x.to(device), whole.y.to(device)
    return partial(_epoch_seconds, step, lambda number: (in_memory for _ in range(steps)))


def _epoch_seconds(step: Callable[[Any], object], epoch: Callable[[int], Iterable[Any]], number: int) -> float:
    start = time.perf_counter()
    for batch in epoch(number):
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _torchvision_loader(images: Images, size: int, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return batches cropped, flipped and mixed by workers, as in torchvision's guide."""
    return DataLoader(
        _PillowImages(images, size),
        batch,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
        collate_fn=_cutmix,
        pin_memory=torch.cuda.is_available(),
    )


class _PillowImages(Dataset[tuple[Tensor, int]]):
    """Images as in torchvision's data sets: bytes in memory, each made a Pillow image when it is read."""

    def __init__(self, images: Images, size: int):
        from torchvision import transforms

        self.pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.y.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(size, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def _cutmix(samples: list[tuple[Tensor, int]]) -> Any:
    from torchvision.transforms import v2

    return v2.CutMix(num_classes=10)(*default_collate(samples))
