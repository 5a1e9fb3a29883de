"""Augmentation of whole batches: every function draws from the generator it is given, and from nothing else.

All take and return images (B, C, H, W) in [0, 1], not standardised yet, and label probabilities (B, classes);
the partner is a second batch of the same size for the steps that mix images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.errors import InputError, unknown


@dataclass(frozen=True)
class Sample:
    """Images ``x`` (B, C, H, W) float32 and label probabilities ``y`` (B, classes)."""

    x: Tensor
    y: Tensor


class Draws(Protocol):
    """What the steps need of a ``numpy.random.Generator``."""

    def random(self, size: int, /) -> np.ndarray:
        """Return uniform numbers in [0, 1)."""

    def integers(self, low: int, high: int, size: int, /) -> np.ndarray:
        """Return whole numbers from ``low`` to below ``high``."""

    def beta(self, a: float, b: float, size: int, /) -> np.ndarray:
        """Return numbers from Beta(a, b)."""


@dataclass(frozen=True)
class Rows:
    """Draws for ``rows`` of a batch of ``whole`` images: what a generator gives these rows when it draws for all.

    So the processes that share a batch augment each image as one process alone would.
    """

    rng: np.random.Generator
    rows: slice
    whole: int

    def random(self, size: int, /) -> np.ndarray:
        """Return uniform numbers in [0, 1)."""
        return self.rng.random(self.whole)[self.rows]

    def integers(self, low: int, high: int, size: int, /) -> np.ndarray:
        """Return whole numbers from ``low`` to below ``high``."""
        return self.rng.integers(low, high, self.whole)[self.rows]

    def beta(self, a: float, b: float, size: int, /) -> np.ndarray:
        """Return numbers from Beta(a, b)."""
        return self.rng.beta(a, b, self.whole)[self.rows]


Step = Callable[[Sample, Sample, Draws], Sample]


def flip(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.from_numpy(rng.random(len(own.x)) < 0.5)
    return Sample(torch.where(mirrored[:, None, None, None], own.x.flip(3), own.x), own.y)


def crop(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Pad an eighth of the side with black (4 pixels of 32) and cut each image out at a random place."""
    count, channels, h, w = own.x.shape
    pad = h // 8
    padded = F.pad(own.x, (pad,) * 4)
    top, left = (torch.from_numpy(rng.integers(0, 2 * pad + 1, count)) for _ in range(2))
    rows = top[:, None] + torch.arange(h)
    columns = left[:, None] + torch.arange(w)
    flat = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return Sample(padded.flatten(2).gather(2, flat).view(own.x.shape), own.y)


def cutout(own: Sample, partner: Sample, rng: Draws, blank: Tensor | None = None) -> Sample:
    """Blank a square of half the side in each image with probability 1/2; it may stick out.

    ``blank`` (C,) is the colour set, zero if not given. With the mean colour, the square is zero once the image
    is standardised, as where Cutout comes after normalisation.

    DeVries and Taylor, arXiv:1708.04552, with the size and probability of the RWP paper (16 of 32 pixels).
    """
    count, _, h, w = own.x.shape
    inside = _boxes(rng.integers(0, h, count), rng.integers(0, w, count), np.full(count, h // 2), h, w)
    hit = torch.from_numpy(rng.random(count) < 0.5)
    fill = own.x.new_zeros(()) if blank is None else blank[:, None, None]
    return Sample(torch.where((inside & hit[:, None, None])[:, None], fill, own.x), own.y)


def mixup(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Blend each image and label with its partner's, own share from Beta(1, 1).

    Zhang et al., ICLR 2018, arXiv:1710.09412, with their alpha of 1 for CIFAR.
    """
    share = torch.from_numpy(rng.beta(1.0, 1.0, len(own.x)).astype(np.float32))
    wide = share[:, None, None, None]
    return Sample(wide * own.x + (1 - wide) * partner.x, share[:, None] * own.y + (1 - share[:, None]) * partner.y)


def cutmix(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Paste a box of the partner into each image; labels mix by the box's area. As in the SADT notebook.

    Per image: lambda ~ Beta(0.25, 0.25), side floor(S sqrt(1 - lambda)), centre a uniform pixel, box from
    centre - side // 2 to centre + side // 2 clipped to the image, an empty side counted as 1.
    Yun et al., ICCV 2019, arXiv:1905.04899; there the partner is another image of the batch.
    """
    count, _, h, w = own.x.shape
    side = np.floor(h * np.sqrt(1 - rng.beta(0.25, 0.25, count))).astype(int)
    inside = _boxes(rng.integers(0, h, count), rng.integers(0, w, count), side, h, w, least=1)
    share = 1 - inside.float().mean(dim=(1, 2))[:, None]
    x = torch.where(inside[:, None], partner.x, own.x)
    return Sample(x, share * own.y + (1 - share) * partner.y)


STEPS: dict[str, Step] = {"flip": flip, "crop": crop, "cutout": cutout, "mixup": mixup, "cutmix": cutmix}
MIXING = ("mixup", "cutmix")


def chain(names: Sequence[str], blank: Tensor | None = None) -> list[Step]:
    """Return the steps of these names; ``blank`` (C,) is what cutout sets.

    Raises InputError for an unknown one, or two that both mix labels.
    """
    for name in names:
        if name not in STEPS:
            raise unknown("augmentation in data.augment", name, STEPS)
    if all(name in names for name in MIXING):
        raise InputError("data.augment has both mixup and cutmix; choose one of them")
    return [partial(cutout, blank=blank) if name == "cutout" else STEPS[name] for name in names]


def _boxes(row: np.ndarray, column: np.ndarray, side: np.ndarray, h: int, w: int, least: int = 0) -> Tensor:
    """Return masks (B, h, w), true inside each square around its centre, clipped, at least ``least`` wide."""

    def band(centre: np.ndarray, length: int) -> Tensor:
        start = np.clip(centre - side // 2, 0, length)
        end = np.maximum(np.clip(centre + side // 2, 0, length), start + least)
        pixels = torch.arange(length)
        return (pixels >= torch.from_numpy(start)[:, None]) & (pixels < torch.from_numpy(end)[:, None])

    return band(row, h)[:, :, None] & band(column, w)[:, None, :]
