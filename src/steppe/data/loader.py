"""Batches: training batches as a pure function of seed and epoch, evaluation batches in order."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.normalize import Normalizer
from steppe.data.transforms.basic import Sample, Transform, crop
from steppe.data.transforms.draws import RecordedDraws, RowDraws, to_tensor
from steppe.data.transforms.pil_ops import to_float
from steppe.data.transforms.registry import MIXING, make_steps
from steppe.errors import InputError

_ORDER, _PARTNER, _AUGMENT, _NOISE = 1, 2, 3, 4


class Loader:
    """Shuffled, augmented training batches; ``epoch(k)`` yields the same bits whenever it is called.

    Images are augmented first and standardised last, so crop pads with black; cutout fills with the mean colour,
    which becomes zero (the order of the RWP paper's CIFAR recipe). Labels are class indices, or probabilities if a
    step mixes images. An image's partner comes from a second, independent order of the whole training set.
    ``views`` are compositions of steps that replace ``augment``: the first gives x, the others extra["view 2"] and
    so on. Without them, ``crops`` further views are random crops of the augmented image, whose labels they share.
    Pixels are sent to ``device`` as uint8 and augmented there.

    With several processes, each has a Loader with its ``rank`` of ``size`` and yields its rows of the same
    batches. The last batch is left out if a process would get a single image of it, because BatchNorm needs two.

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
        crops: int = 0,
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
        self.steps = list(views[0]) if views else make_steps(augment, blank=normalize.colour)
        self.further, self.crops_augmented = views[1:] or [[crop]] * crops, not views
        self.mixes = not views and any(name in MIXING for name in augment)
        self._calls: list[tuple[str, tuple[float, ...]]] | None = None  # to the generator, for one batch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch)
        return whole + (rest >= 2 * self.size)

    def rows(self, count: int) -> slice:
        """Return this process's rows of a batch of ``count`` images; processes differ by at most one row."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def epoch(self, number: int, first: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch: x (B, C, H, W) float32, y, and index (B,) into the images.

        Only every ``stride``-th batch from ``first`` on; each has the bits it has without a stride.
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
                self._skip(rng, len(index))

    def _batch(self, index: Tensor, partner: Tensor, rng: np.random.Generator, epoch: int, number: int) -> Batch:
        """Return one batch of an epoch with these images and partners."""
        rows = self.rows(len(index))
        draws = RowDraws(rng, rows, len(index))
        index, partner = index[rows], partner[rows]
        sample = self._sample(index)
        other = self._sample(partner) if self.mixes else sample
        for step in self.steps:
            sample = step(sample, other, draws)
        y = sample.y if self.mixes else self.images.y[index]
        x = self._standardised(sample.x, rows, draws.whole, epoch, number, 1)
        return Batch(x, y, index, self._further_views(sample, index, rows, draws.whole, epoch, number))

    def _skip(self, rng: np.random.Generator, count: int) -> None:
        """Draw the random numbers of a batch of ``count`` images without making it."""
        if self._calls is None:
            recorded = RecordedDraws(np.random.default_rng(0))
            one = self._sample(torch.zeros(1, dtype=torch.long))
            for step in self.steps:
                step(one, one, recorded)
            self._calls = recorded.calls
        for name, arguments in self._calls:
            getattr(rng, name)(*arguments, count)

    def _standardised(self, x: Tensor, rows: slice, whole: int, *seed: int) -> Tensor:
        """Return images as network inputs; their noise, if any, is seeded by epoch, batch number and view."""
        clean = self.normalize.standardise(to_float(x))
        if not self.normalize.noise:
            return clean
        rng = np.random.default_rng([self.seed, _NOISE, *seed])
        noise = rng.standard_normal((whole, *x.shape[1:]), np.float32)[rows]
        return clean + self.normalize.noise * to_tensor(noise, clean)

    def _further_views(
        self, augmented: Sample, index: Tensor, rows: slice, whole: int, epoch: int, number: int
    ) -> dict[str, Tensor]:
        """Return the views after the first, each with a generator of its own."""
        views = {}
        for view, steps in enumerate(self.further, 2):
            draws = RowDraws(np.random.default_rng([self.seed, _AUGMENT, epoch, number, view]), rows, whole)
            sample = augmented if self.crops_augmented else self._sample(index)
            for step in steps:
                sample = step(sample, sample, draws)
            views[f"view {view}"] = self._standardised(sample.x, rows, whole, epoch, number, view)
        return views

    def _sample(self, index: Tensor) -> Sample:
        x, y = (t.to(self.device, non_blocking=True) for t in (self.images.at(index), self.images.y[index]))
        return Sample(x, y if y.is_floating_point() else F.one_hot(y, self.classes).float())


def evaluation_batches(images: Images, batch: int, normalize: Normalizer) -> Iterator[Batch]:
    """Yield all images in order, normalised and not augmented."""
    for start in range(0, len(images), batch):
        stop = min(start + batch, len(images))
        yield Batch(normalize(images.at(slice(start, stop))), images.y[start:stop], torch.arange(start, stop))
