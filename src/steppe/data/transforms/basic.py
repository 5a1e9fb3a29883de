"""Augmentation steps on whole batches: flip, crop, resized crop, jitter, cutout.

A step takes and returns images (B, C, H, W), not standardised yet, and label probabilities (B, classes); the
partner is a second batch of the same size for the steps that mix images. Random numbers come from the generator
alone and are drawn on the host; images stay on their device, which the host never waits for. Images stay uint8, a
fourth of the memory, through the steps that only move pixels; the first step that computes values makes them
float32 in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.data.transforms.draws import Draws, Plan, map_arrays, to_tensor
from steppe.data.transforms.pil_ops import to_float, where
from steppe.errors import InputError


@dataclass(frozen=True)
class Sample:
    """Images ``x`` (B, C, H, W), uint8 or float32 in [0, 1], and label probabilities ``y`` (B, classes)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Transform:
    """An augmentation step in two parts.

    ``draw`` returns the plan for a batch of images of a shape (B, C, H, W); ``apply`` takes the images, those of
    the partners, and the plan, whose arrays are tensors on the device of the images. A call does both.
    """

    draw: Callable[[Draws, Sequence[int]], Plan]
    apply: Callable[[Sample, Sample, Plan], Sample]

    def __call__(self, sample: Sample, partner: Sample, rng: Draws) -> Sample:
        """Return the augmented images."""
        plan = map_arrays(lambda array: to_tensor(array, sample.x), self.draw(rng, sample.x.shape))
        return self.apply(sample, partner, plan)


_TRIES, _AREA, _RATIO = 10, (0.08, 1.0), (3 / 4, 4 / 3)
_GREY = (0.2989, 0.587, 0.114)
_ORDERS = np.array(list(permutations(range(3))))


def _draw_flip(rng: Draws, shape: Sequence[int]) -> Plan:
    return {"mirrored": rng.random(shape[0]) < 0.5}


def _draw_alternate_flip(rng: Draws, shape: Sequence[int]) -> Plan:
    return {"mirrored": rng.alternate(shape[0])}


def _flip(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Mirror each image left to right with probability 1/2, or in every second epoch."""
    return Sample(where(plan["mirrored"][:, None, None, None], sample.x.flip(3), sample.x), sample.y)


def flip_with(mode: str = "random") -> Transform:
    """Return the flip that mirrors each image at random, or with ``alternate`` in every second epoch.

    Then the first epoch is random, so that two epochs in a row have each image in both forms (Jordan, 2024,
    arXiv:2404.00498, section 3.6).

    Raises InputError for another mode.
    """
    if mode not in ("random", "alternate"):
        raise InputError(f"data.augment has flip with mode={mode}; choose random or alternate")
    return Transform(_draw_flip if mode == "random" else _draw_alternate_flip, _flip)


def _draw_crop(rng: Draws, shape: Sequence[int], pad: int | None = None, mode: str = "zeros") -> Plan:
    pad = shape[2] // 8 if pad is None else pad
    if mode == "reflect" and pad >= min(shape[2:]):
        raise InputError(
            f"data.augment has crop with pad={pad} by reflection, and images are {shape[3]}x{shape[2]}; give a "
            "smaller pad"
        )
    return {name: rng.integers(0, 2 * pad + 1, shape[0]) for name in ("top", "left")}


def _crop(sample: Sample, partner: Sample, plan: Plan, pad: int | None = None, mode: str = "zeros") -> Sample:
    """Pad each image and cut it out at a random place."""
    count, channels, h, w = sample.x.shape
    pad = h // 8 if pad is None else pad
    padded = F.pad(sample.x, (pad,) * 4) if mode == "zeros" else _reflected(sample.x, pad)
    top, left = (plan[name][:, None, None] for name in ("top", "left"))
    planes, down = (torch.arange(n, device=sample.x.device) for n in (count * channels, h))
    rows = planes.view(count, channels, 1) * padded.shape[2] + top + down
    # pixels of a row are contiguous: a row of the crop is the run of w pixels that begins at its first one
    runs = padded.flatten().unfold(0, w, 1)
    x = runs.index_select(0, (rows * padded.shape[3] + left).flatten())
    return Sample(x.view(sample.x.shape), sample.y)


def _reflected(x: Tensor, pad: int) -> Tensor:
    """Return ``F.pad(x, ..., mode="reflect")``, which takes no bytes."""
    for dim, size in ((2, x.shape[2]), (3, x.shape[3])):
        place = torch.arange(-pad, size + pad, device=x.device).abs()
        x = x.index_select(dim, size - 1 - (size - 1 - place).abs())
    return x


def crop_with(pad: int | None = None, mode: str = "zeros") -> Transform:
    """Return the crop that pads ``pad`` pixels, by default an eighth of the side (4 of 32).

    They are black, or with ``reflect`` those of the image, mirrored at its border.

    Raises InputError for another mode, and for a pad that is no whole number of at least 1.
    """
    if pad is not None and (not isinstance(pad, int) or isinstance(pad, bool) or pad < 1):
        raise InputError(f"data.augment has crop with pad={pad}; give a whole number of pixels, at least 1")
    if mode not in ("zeros", "reflect"):
        raise InputError(f"data.augment has crop with mode={mode}; choose zeros or reflect")
    return Transform(partial(_draw_crop, pad=pad, mode=mode), partial(_crop, pad=pad, mode=mode))


def _draw_resized_crop(rng: Draws, shape: Sequence[int]) -> Plan:
    count, _, h, w = shape
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
    return {"top": top, "left": left, "height": height, "width": width}


def _resized_crop(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Cut a random box out of each image and stretch it to the image's size, bilinearly.

    The box has an area uniform in 8 % to 100 % of the image's and a ratio of width to height log-uniform in 3/4 to
    4/3, each side rounded to pixels. The first of ten such boxes that fits is used, else the whole image; its
    position is uniform. As torchvision's RandomResizedCrop with the settings of PyTorch's ImageNet example.

    Szegedy et al., CVPR 2015, arXiv:1409.4842, section 6.
    """
    count, _, h, w = sample.x.shape
    rows = _grid_coordinates(plan["top"], plan["height"], h)
    columns = _grid_coordinates(plan["left"], plan["width"], w)
    grid = torch.stack([columns[:, None, :].expand(count, h, w), rows[:, :, None].expand(count, h, w)], dim=3)
    return Sample(F.grid_sample(to_float(sample.x), grid, padding_mode="border", align_corners=False), sample.y)


def _draw_jitter(rng: Draws, shape: Sequence[int]) -> Plan:
    count = shape[0]
    order = _ORDERS[rng.integers(0, len(_ORDERS), count)]
    factors = np.stack([0.6 + 0.8 * rng.random(count) for _ in range(3)], axis=1).astype(np.float32)
    return {"order": order, "factors": factors, "grey": np.array(_GREY, np.float32)}


def _jitter(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Change brightness, contrast and saturation of each image, in random order, by factors in 0.6 to 1.4.

    Each is x <- f x + (1 - f) t, clipped to [0, 1], with a uniform factor f of its own. t is black for brightness,
    the image's mean grey for contrast and each pixel's grey for saturation (0.2989 R + 0.587 G + 0.114 B; images
    of one channel are grey already). As torchvision's ColorJitter(0.4, 0.4, 0.4, 0), timm's default.
    """
    x = to_float(sample.x)
    for kind in plan["order"].unbind(1):
        f = plan["factors"].gather(1, kind[:, None])[:, :, None, None]
        grey = x if x.shape[1] == 1 else (x * plan["grey"][:, None, None]).sum(1, keepdim=True)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        kind = kind[:, None, None, None]
        target = where(kind == 0, torch.zeros_like(mean), where(kind == 1, mean, grey))
        x = (f * x + (1 - f) * target).clamp(0, 1)
    return Sample(x, sample.y)


def _draw_cutout(rng: Draws, shape: Sequence[int], blank: tuple[float, ...] | None = None) -> Plan:
    count, _, h, w = shape
    plan = edges(rng.integers(0, h, count), rng.integers(0, w, count), h // 2, h, w)
    plan["cut"] = (rng.random(count) < 0.5)[:, None]
    return plan | ({} if blank is None else {"blank": np.array(blank, np.float32)[:, None, None]})


def _cutout(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Fill a square of half the side in each image with probability 1/2; it is clipped at the borders.

    DeVries and Taylor, arXiv:1708.04552, with the size and probability of the RWP paper (16 of 32 pixels).
    """
    mask = boxes(plan, *sample.x.shape[2:])
    x = to_float(sample.x) if "blank" in plan else sample.x
    fill = plan["blank"] if "blank" in plan else x.new_zeros(1)
    return Sample(where(mask[:, None], fill, x), sample.y)


def cutout_with(blank: tuple[float, ...] | None) -> Transform:
    """Return cutout with a square of the colour ``blank`` (C) in [0, 1], by default black.

    With the mean colour the square is zero once the image is standardised, as where Cutout comes after
    normalisation.
    """
    return Transform(partial(_draw_cutout, blank=blank), _cutout)


flip = flip_with()
crop = crop_with()
resized_crop = Transform(_draw_resized_crop, _resized_crop)
jitter = Transform(_draw_jitter, _jitter)
cutout = cutout_with(None)


def _grid_coordinates(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return coordinates (B, size) for ``grid_sample`` that stretch ``length`` pixels from ``start`` to ``size``.

    They go from -1 to 1 from border to border. Nothing outside the box is read: its edge pixels are repeated.
    """
    length = length.double()[:, None]
    position = (torch.arange(size, device=start.device, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    inside = start[:, None] + position.clamp(min=0).minimum(length - 1)
    return ((2 * inside + 1) / size - 1).float()


def edges(row: np.ndarray, column: np.ndarray, side: np.ndarray | int, h: int, w: int, least: int = 0) -> Plan:
    """Return the edges of squares around their centres, clipped, at least ``least`` pixels wide."""
    plan = {}
    for axis, centre, length in (("rows", row, h), ("columns", column, w)):
        start = np.clip(centre - side // 2, 0, length)
        end = np.maximum(np.clip(centre + side // 2, 0, length), start + least)
        plan[axis] = np.stack([start, end])[:, :, None]
    return plan


def boxes(plan: Plan, h: int, w: int) -> Tensor:
    """Return the masks (B, h, w) of the squares with these `edges`, of images that are ``cut`` (B, 1) if given."""

    def band(bounds: Tensor, length: int) -> Tensor:
        pixels = torch.arange(length, device=bounds.device)
        return (pixels >= bounds[0]) & (pixels < bounds[1])

    rows, columns = band(plan["rows"], h), band(plan["columns"], w)
    rows = rows & plan["cut"] if "cut" in plan else rows
    # of bytes, because for bools the operation is not vectorised on a CPU
    return (rows.view(torch.uint8)[:, :, None] & columns.view(torch.uint8)[:, None, :]).view(torch.bool)
