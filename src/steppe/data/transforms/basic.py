"""Augmentation steps on whole batches: flip, crop, resized crop, jitter, cutout.

A step takes and returns images (B, C, H, W), not standardised yet, and label probabilities (B, classes); the
partner is a second batch of the same size for the steps that mix images. Random numbers come from the generator
alone and are drawn on the host; images stay on their device. Images stay uint8, a fourth of the memory, through
the steps that only move pixels; the first step that computes values makes them float32 in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.data.transforms.draws import Draws, to_tensor
from steppe.data.transforms.pil_ops import to_float, where


@dataclass(frozen=True)
class Sample:
    """Images ``x`` (B, C, H, W), uint8 or float32 in [0, 1], and label probabilities ``y`` (B, classes)."""

    x: Tensor
    y: Tensor


Transform = Callable[[Sample, Sample, Draws], Sample]

_TRIES, _AREA, _RATIO = 10, (0.08, 1.0), (3 / 4, 4 / 3)
_GREY = (0.2989, 0.587, 0.114)
_ORDERS = np.array(list(permutations(range(3))))


def flip(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Mirror each image left to right with probability 1/2."""
    mirrored = to_tensor(rng.random(len(sample.x)) < 0.5, sample.x)
    return Sample(where(mirrored[:, None, None, None], sample.x.flip(3), sample.x), sample.y)


def crop(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Pad an eighth of the side with black (4 pixels of 32) and cut each image out at a random place."""
    count, channels, h, w = sample.x.shape
    pad = h // 8
    padded = F.pad(sample.x, (pad,) * 4)
    top, left = (to_tensor(rng.integers(0, 2 * pad + 1, count), sample.x)[:, None, None] for _ in range(2))
    planes, down = (torch.arange(n, device=sample.x.device) for n in (count * channels, h))
    rows = planes.view(count, channels, 1) * padded.shape[2] + top + down
    # pixels of a row are contiguous: a row of the crop is the run of w pixels that begins at its first one
    runs = padded.flatten().unfold(0, w, 1)
    x = runs.index_select(0, (rows * padded.shape[3] + left).flatten())
    return Sample(x.view(sample.x.shape), sample.y)


def resized_crop(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Cut a random box out of each image and stretch it to the image's size, bilinearly.

    The box has an area uniform in 8 % to 100 % of the image's and a ratio of width to height log-uniform in 3/4 to
    4/3, each side rounded to pixels. The first of ten such boxes that fits is used, else the whole image; its
    position is uniform. As torchvision's RandomResizedCrop with the settings of PyTorch's ImageNet example.

    Szegedy et al., CVPR 2015, arXiv:1409.4842, section 6.
    """
    count, _, h, w = sample.x.shape
    width, height = np.full(count, w), np.full(count, h)
    done = np.zeros(count, bool)
    for _ in range(_TRIES):
        area = h * w * (_AREA[0] + (_AREA[1] - _AREA[0]) * rng.random(count))
        ratio = np.exp(np.log(_RATIO[0]) + (np.log(_RATIO[1]) - np.log(_RATIO[0])) * rng.random(count))
        box = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
        fits = (box[0] > 0) & (box[0] <= w) & (box[1] > 0) & (box[1] <= h) & ~done
        width, height = np.where(fits, box[0], width), np.where(fits, box[1], height)
        done |= fits
    top, left = (np.floor(rng.random(count) * (room + 1)) for room in (h - height, w - width))
    rows, columns = (
        to_tensor(_grid_coordinates(*axis), sample.x) for axis in ((top, height, h), (left, width, w))
    )
    grid = torch.stack([columns[:, None, :].expand(count, h, w), rows[:, :, None].expand(count, h, w)], dim=3)
    return Sample(F.grid_sample(to_float(sample.x), grid, padding_mode="border", align_corners=False), sample.y)


def jitter(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Change brightness, contrast and saturation of each image, in random order, by factors in 0.6 to 1.4.

    Each is x <- f x + (1 - f) t, clipped to [0, 1], with a uniform factor f of its own. t is black for brightness,
    the image's mean grey for contrast and each pixel's grey for saturation (0.2989 R + 0.587 G + 0.114 B; images
    of one channel are grey already). As torchvision's ColorJitter(0.4, 0.4, 0.4, 0), timm's default.
    """
    count = len(sample.x)
    order = to_tensor(_ORDERS[rng.integers(0, len(_ORDERS), count)], sample.x)
    factors = to_tensor(
        np.stack([0.6 + 0.8 * rng.random(count) for _ in range(3)], axis=1).astype(np.float32), sample.x
    )
    x = to_float(sample.x)
    for kind in order.T:
        f = factors.gather(1, kind[:, None])[:, :, None, None]
        grey = x if x.shape[1] == 1 else (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        kind = kind[:, None, None, None]
        target = where(kind == 0, torch.zeros_like(mean), where(kind == 1, mean, grey))
        x = (f * x + (1 - f) * target).clamp(0, 1)
    return Sample(x, sample.y)


def cutout(sample: Sample, partner: Sample, rng: Draws, blank: Tensor | None = None) -> Sample:
    """Fill a square of half the side in each image with probability 1/2; it is clipped at the borders.

    ``blank`` (C,) is its colour in [0, 1], by default black. With the mean colour the square is zero once the
    image is standardised, as where Cutout comes after normalisation.

    DeVries and Taylor, arXiv:1708.04552, with the size and probability of the RWP paper (16 of 32 pixels).
    """
    count, _, h, w = sample.x.shape
    square = boxes(rng.integers(0, h, count), rng.integers(0, w, count), np.full(count, h // 2), h, w)
    mask = square & (rng.random(count) < 0.5)[:, None, None]
    x = sample.x if blank is None else to_float(sample.x)
    fill = x.new_zeros(1) if blank is None else blank.to(x)[:, None, None]
    return Sample(where(to_tensor(mask, x)[:, None], fill, x), sample.y)


def _grid_coordinates(start: np.ndarray, length: np.ndarray, size: int) -> np.ndarray:
    """Return coordinates (B, size) for ``grid_sample`` that stretch ``length`` pixels from ``start`` to ``size``.

    They go from -1 to 1 from border to border. Nothing outside the box is read: its edge pixels are repeated.
    """
    position = (np.arange(size) + 0.5) * (length / size)[:, None] - 0.5
    inside = start[:, None] + np.clip(position, 0, length[:, None] - 1)
    return ((2 * inside + 1) / size - 1).astype(np.float32)


def boxes(row: np.ndarray, column: np.ndarray, side: np.ndarray, h: int, w: int, least: int = 0) -> np.ndarray:
    """Return masks (B, h, w) of squares around their centres, clipped, at least ``least`` pixels wide."""

    def band(centre: np.ndarray, length: int) -> np.ndarray:
        start = np.clip(centre - side // 2, 0, length)
        end = np.maximum(np.clip(centre + side // 2, 0, length), start + least)
        pixels = np.arange(length)
        inside: np.ndarray = (pixels >= start[:, None]) & (pixels < end[:, None])
        return inside

    mask: np.ndarray = band(row, h)[:, :, None] & band(column, w)[:, None, :]
    return mask
