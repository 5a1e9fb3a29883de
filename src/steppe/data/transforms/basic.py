"""Augmentation of whole batches: every function draws from the generator it is given, and from nothing else.

All take and return images (B, C, H, W), not standardised yet, and label probabilities (B, classes); the partner is
a second batch of the same size for the steps that mix images. What is drawn is drawn by the host and small; the
images are worked on where they are. They stay bytes, a fourth of the memory, through the steps that only move
pixels; the first that computes values makes them numbers in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.data.transforms.pil_ops import picked, unit


@dataclass(frozen=True)
class Sample:
    """Images ``x`` (B, C, H, W), uint8 or float32 in [0, 1], and label probabilities ``y`` (B, classes)."""

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
class RowDraws:
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


class RecordedDraws:
    """Draws that remember what was asked of them: the name and the arguments before the size.

    No step's draws depend on what was drawn, so what one image asks for is what any number of them asks for.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.calls: list[tuple[str, tuple[float, ...]]] = []

    def random(self, size: int, /) -> np.ndarray:
        """Return uniform numbers in [0, 1)."""
        return self._asked("random", (), size)

    def integers(self, low: int, high: int, size: int, /) -> np.ndarray:
        """Return whole numbers from ``low`` to below ``high``."""
        return self._asked("integers", (low, high), size)

    def beta(self, a: float, b: float, size: int, /) -> np.ndarray:
        """Return numbers from Beta(a, b)."""
        return self._asked("beta", (a, b), size)

    def _asked(self, name: str, arguments: tuple[float, ...], size: int) -> np.ndarray:
        self.calls.append((name, arguments))
        drawn: np.ndarray = getattr(self.rng, name)(*arguments, size)
        return drawn


Transform = Callable[[Sample, Sample, Draws], Sample]

_TRIES, _AREA, _RATIO = 10, (0.08, 1.0), (3 / 4, 4 / 3)
_GREY = (0.2989, 0.587, 0.114)
_ORDERS = np.array(list(permutations(range(3))))


def flip(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Mirror each image left to right with probability 1/2."""
    mirrored = placed(rng.random(len(own.x)) < 0.5, own.x)
    return Sample(picked(mirrored[:, None, None, None], own.x.flip(3), own.x), own.y)


def crop(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Pad an eighth of the side with black (4 pixels of 32) and cut each image out at a random place."""
    count, channels, h, w = own.x.shape
    pad = h // 8
    padded = F.pad(own.x, (pad,) * 4)
    top, left = (placed(rng.integers(0, 2 * pad + 1, count), own.x)[:, None, None] for _ in range(2))
    planes, down = (torch.arange(n, device=own.x.device) for n in (count * channels, h))
    rows = planes.view(count, channels, 1) * padded.shape[2] + top + down
    # the pixels of a row lie side by side: of all stretches as wide, those that begin where it does are taken
    stretches = padded.flatten().unfold(0, w, 1)
    x = stretches.index_select(0, (rows * padded.shape[3] + left).flatten())
    return Sample(x.view(own.x.shape), own.y)


def resized_crop(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Cut a random box out of each image and stretch it to the image's size, bilinearly.

    The box has an area uniform in 8 % to 100 % of the image's and a ratio of width to height log-uniform in 3/4 to
    4/3, each side rounded to pixels; of ten such boxes the first that fits is taken, else the whole image; its
    place is uniform. As torchvision's RandomResizedCrop, in the settings of PyTorch's ImageNet example.

    Szegedy et al., CVPR 2015, arXiv:1409.4842, section 6.
    """
    count, _, h, w = own.x.shape
    width, height = np.full(count, w), np.full(count, h)
    found = np.zeros(count, bool)
    for _ in range(_TRIES):
        area = h * w * (_AREA[0] + (_AREA[1] - _AREA[0]) * rng.random(count))
        ratio = np.exp(np.log(_RATIO[0]) + (np.log(_RATIO[1]) - np.log(_RATIO[0])) * rng.random(count))
        box = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
        fits = (box[0] > 0) & (box[0] <= w) & (box[1] > 0) & (box[1] <= h) & ~found
        width, height = np.where(fits, box[0], width), np.where(fits, box[1], height)
        found |= fits
    top, left = (np.floor(rng.random(count) * (room + 1)) for room in (h - height, w - width))
    rows, columns = (placed(_stretched(*along), own.x) for along in ((top, height, h), (left, width, w)))
    grid = torch.stack([columns[:, None, :].expand(count, h, w), rows[:, :, None].expand(count, h, w)], dim=3)
    return Sample(F.grid_sample(unit(own.x), grid, padding_mode="border", align_corners=False), own.y)


def jitter(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Change brightness, contrast and saturation of each image, in random order, by factors in 0.6 to 1.4.

    Each is x <- f x + (1 - f) t, cut off at 0 and 1, with its own uniform factor f and t black for brightness, the
    image's mean grey for contrast, each pixel's grey for saturation (0.2989 R + 0.587 G + 0.114 B; images of one
    channel are grey already). As torchvision's ColorJitter(0.4, 0.4, 0.4, 0), timm's default.
    """
    count = len(own.x)
    order = placed(_ORDERS[rng.integers(0, len(_ORDERS), count)], own.x)
    factors = placed(np.stack([0.6 + 0.8 * rng.random(count) for _ in range(3)], axis=1).astype(np.float32), own.x)
    x = unit(own.x)
    for kind in order.T:
        f = factors.gather(1, kind[:, None])[:, :, None, None]
        grey = x if x.shape[1] == 1 else (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        kind = kind[:, None, None, None]
        target = picked(kind == 0, torch.zeros_like(mean), picked(kind == 1, mean, grey))
        x = (f * x + (1 - f) * target).clamp(0, 1)
    return Sample(x, own.y)


def cutout(own: Sample, partner: Sample, rng: Draws, blank: Tensor | None = None) -> Sample:
    """Blank a square of half the side in each image with probability 1/2; it may stick out.

    ``blank`` (C,) is the colour set, in [0, 1], black if not given. With the mean colour, the square is zero once
    the image is standardised, as where Cutout comes after normalisation.

    DeVries and Taylor, arXiv:1708.04552, with the size and probability of the RWP paper (16 of 32 pixels).
    """
    count, _, h, w = own.x.shape
    inside = _boxes(rng.integers(0, h, count), rng.integers(0, w, count), np.full(count, h // 2), h, w)
    hit = inside & (rng.random(count) < 0.5)[:, None, None]
    x = own.x if blank is None else unit(own.x)
    fill = x.new_zeros(1) if blank is None else blank.to(x)[:, None, None]
    return Sample(picked(placed(hit, x)[:, None], fill, x), own.y)


def mixup(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Blend each image and label with its partner's, own share from Beta(1, 1).

    Zhang et al., ICLR 2018, arXiv:1710.09412, with their alpha of 1 for CIFAR.
    """
    share = placed(rng.beta(1.0, 1.0, len(own.x)).astype(np.float32), own.x)
    wide = share[:, None, None, None]
    x = wide * unit(own.x) + (1 - wide) * unit(partner.x)
    return Sample(x, share[:, None] * own.y + (1 - share[:, None]) * partner.y)


def cutmix(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Paste a box of the partner into each image; labels mix by the box's area. As in the SADT notebook.

    Per image: lambda ~ Beta(0.25, 0.25), side floor(S sqrt(1 - lambda)), centre a uniform pixel, box from
    centre - side // 2 to centre + side // 2 clipped to the image, an empty side counted as 1.
    Yun et al., ICCV 2019, arXiv:1905.04899; there the partner is another image of the batch.
    """
    count, _, h, w = own.x.shape
    side = np.floor(h * np.sqrt(1 - rng.beta(0.25, 0.25, count))).astype(int)
    inside = placed(_boxes(rng.integers(0, h, count), rng.integers(0, w, count), side, h, w, least=1), own.x)
    share = 1 - inside.float().mean(dim=(1, 2))[:, None]
    pasted, x = partner.x, own.x
    if pasted.dtype != x.dtype:
        pasted, x = unit(pasted), unit(x)
    return Sample(picked(inside[:, None], pasted, x), share * own.y + (1 - share) * partner.y)


def placed(drawn: np.ndarray, x: Tensor) -> Tensor:
    """Return what was drawn where ``x`` is."""
    return torch.from_numpy(drawn).to(x.device, non_blocking=True)


def _stretched(start: np.ndarray, length: np.ndarray, size: int) -> np.ndarray:
    """Return where ``size`` pixels lie that ``length`` of them from ``start`` are stretched to, (B, size).

    In the coordinates of ``grid_sample``, -1 to 1 from border to border. Nothing outside the box is read: its edge
    pixels go on to its borders.
    """
    place = (np.arange(size) + 0.5) * (length / size)[:, None] - 0.5
    inside = start[:, None] + np.clip(place, 0, length[:, None] - 1)
    grid: np.ndarray = ((2 * inside + 1) / size - 1).astype(np.float32)
    return grid


def _boxes(row: np.ndarray, column: np.ndarray, side: np.ndarray, h: int, w: int, least: int = 0) -> np.ndarray:
    """Return masks (B, h, w), true inside each square around its centre, clipped, at least ``least`` wide."""

    def band(centre: np.ndarray, length: int) -> np.ndarray:
        start = np.clip(centre - side // 2, 0, length)
        end = np.maximum(np.clip(centre + side // 2, 0, length), start + least)
        pixels = np.arange(length)
        inside: np.ndarray = (pixels >= start[:, None]) & (pixels < end[:, None])
        return inside

    mask: np.ndarray = band(row, h)[:, :, None] & band(column, w)[:, None, :]
    return mask
