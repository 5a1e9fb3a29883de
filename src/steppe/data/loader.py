"""Batches: training batches as a pure function of seed and epoch, evaluation batches in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.limited import fixed_noise
from steppe.data.transforms.basic import RecordedDraws, RowDraws, Sample, Transform, placed
from steppe.data.transforms.pil_ops import unit
from steppe.data.transforms.registry import MIXING, chain
from steppe.errors import InputError

_ORDER, _PARTNER, _AUGMENT, _NOISE = 1, 2, 3, 4
_CHUNK = 4096  # images read at a time for their mean


@dataclass(frozen=True)
class Normalizer:
    """From uint8 pixels to what a network sees: (x / 255 - mean) / std per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise: float = 0.0

    @classmethod
    def of(cls, kind: str, train: Images, noise: float = 0.0) -> Normalizer:
        """'unit' keeps [0, 1]; 'standard' takes mean and standard deviation of the training images.

        ``noise`` is the deviation of Gaussian noise on what comes out, see `steppe.data.limited.fixed_noise`.
        """
        channels = train.pixels.shape[1]
        if kind == "unit":
            return cls((0.0,) * channels, (1.0,) * channels, noise)
        counts = torch.zeros(channels, 256, dtype=torch.long)
        for start in range(0, len(train), _CHUNK):
            for c, values in enumerate(train.at(slice(start, start + _CHUNK)).transpose(0, 1)):
                counts[c] += torch.bincount(values.reshape(-1), minlength=256)
        share = counts.double() / counts.sum(1, keepdim=True)
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ value
        std = ((share * (value - mean[:, None]) ** 2).sum(1)).sqrt().clamp(min=1e-6)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), noise)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) float32."""
        clean = self.standardise(unit(x))
        return clean + self.noise * fixed_noise(x) if self.noise else clean

    @property
    def colour(self) -> Tensor | None:
        """The mean colour (C,), None if that is black."""
        return torch.tensor(self.mean) if any(self.mean) else None

    def standardise(self, x: Tensor) -> Tensor:
        """Return images in [0, 1] as the network sees them; ``x`` itself is changed."""
        if not any(self.mean) and set(self.std) == {1.0}:
            return x
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)


class Loader:
    """Shuffled, augmented training batches; ``epoch(k)`` gives the same bits whenever it is called.

    Images are augmented as they are, so that crop pads with black, and then standardised; cutout sets the mean
    colour, zero afterwards (the order of the RWP paper's CIFAR recipe). Labels are class indices,
    or probabilities once a step mixes images. The partner of an image comes from a second, independent order of
    the whole training set. ``views`` are compositions of steps that take the place of ``augment``; the first gives
    x, the others travel along as extra["view 2"] and so on. Pixels are sent to ``device`` as bytes and augmented
    there.

    Of several processes, each has its own Loader with its ``rank`` among ``size``: the batches are the same, and
    each is given its rows of them. A last batch that would leave one of them a single image is left out, because
    BatchNorm cannot take it.

    Raises InputError if the batch is below 1, below 2 per process of several, or larger than the training set,
    the seed is negative, or an augmentation step is unknown.
    """

    def __init__(
        self,
        images: Images,
        *,
        classes: int,
        batch: int,
        augment: Sequence[str],
        normalize: Normalizer,
        seed: int,
        rank: int = 0,
        size: int = 1,
        views: Sequence[Sequence[Transform]] = (),
        device: torch.device | str = "cpu",
    ):
        if batch < 1:
            raise InputError(f"batch is {batch}; give at least 1")
        if size > 1 and batch < 2 * size:
            raise InputError(
                f"batch is {batch} on {size} processes; give at least {2 * size}, or start fewer processes"
            )
        if batch > len(images):
            raise InputError(
                f"batch is {batch} and only {len(images)} images are trained on; give a smaller batch"
            )
        if seed < 0:
            raise InputError(f"seed is {seed}; give 0 or a positive whole number")
        self.images, self.classes, self.batch = images, classes, batch
        self.normalize, self.seed = normalize, seed
        self.rank, self.size = rank, size
        self.device = torch.device(device)
        self.steps = list(views[0]) if views else chain(augment, blank=normalize.colour)
        self.further = views[1:]
        self.mixes = not views and any(name in MIXING for name in augment)
        self._drawn: list[tuple[str, tuple[float, ...]]] | None = None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch)
        return whole + (rest >= 2 * self.size)

    def rows(self, count: int) -> slice:
        """Return which rows of a batch of ``count`` this process is given; parts differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def epoch(self, number: int, first: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch: x (B, C, H, W) float32, y, and index (B,) into the images.

        Of all batches only every ``stride``-th, from ``first`` on; they are the same as among all.
        """
        orders = [
            torch.from_numpy(np.random.default_rng([self.seed, purpose, number]).permutation(len(self.images)))
            for purpose in (_ORDER, _PARTNER)
        ]
        rng = np.random.default_rng([self.seed, _AUGMENT, number])
        for i in range(len(self)):
            index, partner = (order[i * self.batch : (i + 1) * self.batch] for order in orders)
            if i % stride == first:
                yield self._batch(index, partner, rng, number, i)
            else:
                self._pass_over(rng, len(index))

    def _batch(self, index: Tensor, partner: Tensor, rng: np.random.Generator, number: int, i: int) -> Batch:
        """Return the i-th batch of an epoch, of these images and partners."""
        rows = self.rows(len(index))
        draws = RowDraws(rng, rows, len(index))
        index, partner = index[rows], partner[rows]
        own = self._sample(index)
        other = self._sample(partner) if self.mixes else own
        for step in self.steps:
            own = step(own, other, draws)
        y = own.y if self.mixes else self.images.y[index]
        x = self._finished(own.x, rows, draws.whole, number, i, 1)
        return Batch(x, y, index, self._further(index, rows, draws.whole, number, i))

    def _pass_over(self, rng: np.random.Generator, count: int) -> None:
        """Draw what a batch of so many images draws, and touch none of them."""
        if self._drawn is None:
            noted = RecordedDraws(np.random.default_rng(0))
            one = self._sample(torch.zeros(1, dtype=torch.long))
            for step in self.steps:
                step(one, one, noted)
            self._drawn = noted.calls
        for name, arguments in self._drawn:
            getattr(rng, name)(*arguments, count)

    def _finished(self, x: Tensor, rows: slice, whole: int, *place: int) -> Tensor:
        """Return images as the network sees them, with noise of their own place if there is to be any."""
        clean = self.normalize.standardise(unit(x))
        if not self.normalize.noise:
            return clean
        rng = np.random.default_rng([self.seed, _NOISE, *place])
        drawn = rng.standard_normal((whole, *x.shape[1:]), np.float32)[rows]
        return clean + self.normalize.noise * placed(drawn, clean)

    def _further(self, index: Tensor, rows: slice, whole: int, epoch: int, number: int) -> dict[str, Tensor]:
        """Return the further views of a batch, each from random numbers of its own."""
        found = {}
        for view, steps in enumerate(self.further, 2):
            draws = RowDraws(np.random.default_rng([self.seed, _AUGMENT, epoch, number, view]), rows, whole)
            own = self._sample(index)
            for step in steps:
                own = step(own, own, draws)
            found[f"view {view}"] = self._finished(own.x, rows, whole, epoch, number, view)
        return found

    def _sample(self, index: Tensor) -> Sample:
        x, y = (t.to(self.device, non_blocking=True) for t in (self.images.at(index), self.images.y[index]))
        return Sample(x, F.one_hot(y, self.classes).float())


def evaluation_batches(images: Images, batch: int, normalize: Normalizer) -> Iterator[Batch]:
    """Yield all images in order, normalised, not augmented."""
    for start in range(0, len(images), batch):
        stop = min(start + batch, len(images))
        yield Batch(normalize(images.at(slice(start, stop))), images.y[start:stop], torch.arange(start, stop))
