"""From images to updated weights: whole epochs by the clock, beside a batch in memory and beside what is usual.

Each contestant has a process of its own with PyTorch's default number of threads, and workers if it has any; they
take turns, an epoch at a time, and start an epoch with nothing prepared. What is usual is the loop of PyTorch's
tutorials in its default memory layout: on the batch in memory, and, where torchvision is installed, fed by a
DataLoader whose workers decode, crop and flip each image and mix batches as torchvision does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from steppe import hardware, methods, models
from steppe.bench.apart import apart
from steppe.bench.data import NONE, endless, loader, random_images
from steppe.bench.timing import TimingSpread, alternating, at_least_one, spread
from steppe.data.dataset import Images
from steppe.training.evaluation import to_model_format

USUAL_CHAINS = ("crop+flip+cutmix", NONE)
WORKERS = 2
MEMORY, LOOP = "a batch in memory", "PyTorch's loop, a batch in memory"
TORCHVISION = f"PyTorch's loop, torchvision, {WORKERS} workers"
_RATE = 1e-4


@dataclass(frozen=True)
class EndToEndCost:
    """Images per second, over those from a batch in memory and over those of the loop with torchvision.

    ``of_torchvision`` is None where torchvision is not installed; ``milliseconds`` are those of a step.
    """

    what: str
    of_memory: TimingSpread
    of_torchvision: TimingSpread | None
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def end_to_end_cost(
    chains: Sequence[str] = USUAL_CHAINS,
    *,
    model: str = "simple-cnn",
    batch: int = 64,
    size: int = 32,
    steps: int = 3,
    repeats: int = 7,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[EndToEndCost]:
    """Return how fast a network trains from images, beside a batch in memory and beside what is usual.

    Args:
        chains: Steps of ``data.augment``, joined by '+'; 'none' for none.
        model: Name of a network.
        batch: Images per step.
        size: Side of the images in pixels.
        steps: Steps per epoch.
        repeats: Epochs of each.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a name is unknown.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    for chain in chains:
        endless(random_images(batch, size), chain, batch)  # here, where an error is one line
    with torch.random.fork_rng():
        models.build(model, classes=10, channels=3, size=size)
    about = (model, batch, size, steps)
    with ExitStack() as stack:
        asked = {MEMORY: stack.enter_context(apart(MEMORY, _ours, None, *about))}
        for chain in dict.fromkeys(chains):
            asked[chain] = stack.enter_context(apart(chain, _ours, chain, *about))
        asked[LOOP] = stack.enter_context(apart(LOOP, _usual, False, *about))
        if _torchvision_loads():
            asked[TORCHVISION] = stack.enter_context(apart(TORCHVISION, _usual, True, *about))
        for ask in asked.values():
            ask(0)  # the first epoch is none like the others
        times = alternating({name: partial(ask, 1) for name, ask in asked.items()}, repeats, tell)
    theirs = times.get(TORCHVISION)
    return [
        EndToEndCost(
            name,
            spread(times[MEMORY], t),
            None if theirs is None else spread(theirs, t),
            1000 * median(t) / steps,
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
    """Return what trains for an epoch as ``steppe train`` does, without a chain on one batch over and over."""
    hardware.keep_freed_memory()
    net = _network(model, size, torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), _RATE, momentum=0.9, fused=True)
    step = methods.parse("plain").bind(net, optimizer, steps=10**6, epoch=100)
    images = random_images(steps * batch, size)
    if chain is None:
        held = to_model_format(next(endless(images, NONE, batch)), next(net.parameters()))
        return partial(_epoch, step, lambda number: (held for _ in range(steps)))
    epochs = loader(images, chain, batch)
    param = next(net.parameters())
    return partial(_epoch, lambda one: step(to_model_format(one, param)), epochs.epoch)


def _usual(torchvision: bool, model: str, batch: int, size: int, steps: int) -> Callable[[int], float]:
    """Return what trains for an epoch as PyTorch's tutorials do."""
    net = _network(model, size, torch.contiguous_format)
    optimizer = torch.optim.SGD(net.parameters(), _RATE, momentum=0.9)
    device = hardware.device()
    images = random_images(steps * batch, size)

    def step(pair: tuple[Tensor, Tensor]) -> None:
        x, y = (t.to(device, non_blocking=True) for t in pair)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if torchvision:
        batches = _torchvision(images, size, batch)
        return partial(_epoch, step, lambda number: batches)
    whole = next(endless(images, NONE, batch))
    held = whole.x.to(device), whole.y.to(device)
    return partial(_epoch, step, lambda number: (held for _ in range(steps)))


def _epoch(step: Callable[[Any], object], epoch: Callable[[int], Iterable[Any]], number: int) -> float:
    """Return the seconds of an epoch."""
    start = time.perf_counter()
    for batch in epoch(number):
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _torchvision(images: Images, size: int, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return batches of images cropped, flipped and mixed as torchvision's guide does, made by workers."""
    return DataLoader(
        _Photographs(images, size),
        batch,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
        collate_fn=_mixed,
        pin_memory=torch.cuda.is_available(),
    )


class _Photographs(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets have them: bytes in memory, each a Pillow image when asked for."""

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


def _mixed(samples: list[tuple[Tensor, int]]) -> Any:
    from torchvision.transforms import v2

    return v2.CutMix(num_classes=10)(*default_collate(samples))


def _network(model: str, size: int, layout: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = models.build(model, classes=10, channels=3, size=size).to(hardware.device())
    return net.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]
