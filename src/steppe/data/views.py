"""Several views of one image: named compositions of augmentation steps, one for each network that looks.

The five compositions of OKDPH's supplement (Zhang et al., CVPR 2023, arXiv:2303.14666, table 2), all after a
random crop, and the image as it is:

    1  crop-flip          mirrored left to right with probability 1/2
    2  crop-flip-rotate   mirrored, then turned by up to 15 degrees
    3  crop-flip-cutout   mirrored, then a square of half the side blacked out, always
    4  crop-randaugment   two of 14 operations at strength 9 of 30 (Cubuk et al., arXiv:1909.13719)
    5  crop-autoaugment   a policy of AutoAugment for ImageNet (Cubuk et al., arXiv:1805.09501)
       plain              nothing, not even the crop

Ranges and policies are those that torchvision has as its defaults; what is shifted in from outside is black.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from steppe.data.augment import Draws, Sample, Step, crop, flip
from steppe.errors import InputError, unknown

_NEAREST = Image.Resampling.NEAREST
_ANGLE = 15.0  # degrees


def rotate(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Turn each image by a uniform angle of up to 15 degrees about its middle, nearest pixels, corners black."""
    angles = (2 * rng.random(len(own.x)) - 1) * _ANGLE
    return _each(own, lambda image, i: image.rotate(float(angles[i]), _NEAREST))


def black_square(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Black out a square of half the side around a uniform pixel, clipped at the edges, in every image."""
    count, _, h, w = own.x.shape
    half = h // 4
    rows, columns = (torch.from_numpy(rng.integers(0, n, count)) for n in (h, w))

    def band(centre: Tensor, length: int) -> Tensor:
        pixels = torch.arange(length)
        return (pixels >= (centre - half)[:, None]) & (pixels < (centre + half)[:, None])

    inside = band(rows, h)[:, :, None] & band(columns, w)[:, None, :]
    return Sample(own.x.masked_fill(inside[:, None], 0.0), own.y)


def randaugment(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Apply two operations to each image, drawn with replacement, at strength 9 of 30, to either side."""
    count, _, h, w = own.x.shape
    drawn = [(rng.integers(0, len(_RANDOM), count), rng.integers(0, 2, count)) for _ in range(2)]

    def change(image: Image.Image, i: int) -> Image.Image:
        for chosen, side in drawn:
            name = _RANDOM[chosen[i]]
            image = applied(image, name, strength(name, 9, 31, h, w, turned=bool(side[i])))
        return image

    return _each(own, change)


def autoaugment(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Apply one of 25 policies to each image: two operations, each with its own probability and strength."""
    count, _, h, w = own.x.shape
    chosen = rng.integers(0, len(_POLICIES), count)
    luck = [rng.random(count) for _ in range(2)]
    sides = [rng.integers(0, 2, count) for _ in range(2)]

    def change(image: Image.Image, i: int) -> Image.Image:
        for (name, tenths, level), chance, side in zip(_POLICIES[chosen[i]], luck, sides, strict=True):
            if chance[i] < tenths / 10:
                image = applied(image, name, strength(name, level, 10, h, w, turned=not side[i]))
        return image

    return _each(own, change)


def strength(name: str, level: int, levels: int, h: int, w: int, *, turned: bool) -> float:
    """Return the value of an operation at ``level`` of ``levels``; ``turned`` gives its other sign, if it has one.

    Shears are slopes, translations pixels, rotations degrees; colours change by a share of themselves; posterize
    keeps so many bits, solarize inverts from a value on.
    """
    part = level / (levels - 1)
    if name == "posterize":
        return 8 - round(level / ((levels - 1) / 4))
    if name == "solarize":
        return 255 * (1 - part)
    if name in ("autocontrast", "equalize", "invert", "identity"):
        return 0.0
    size = w if name == "translate-x" else h
    most = {"shear": 0.3, "translate": 150 / 331 * size, "rotate": 30.0}.get(name.split("-")[0], 0.9)
    return -part * most if turned else part * most


def applied(image: Image.Image, name: str, value: float) -> Image.Image:
    """Return the image after an operation with this value (see `strength`)."""
    if name in _MATRICES:
        return image.transform(image.size, Image.Transform.AFFINE, _MATRICES[name](value), _NEAREST)
    if name == "rotate":
        return image.rotate(value, _NEAREST)
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(1 + value)
    if name == "posterize":
        return ImageOps.posterize(image, int(value))
    if name == "solarize":
        return ImageOps.solarize(image, value)  # type: ignore[arg-type]
    return _SIMPLE[name](image) if name in _SIMPLE else image


def _each(own: Sample, change: Callable[[Image.Image, int], Image.Image]) -> Sample:
    """Return the sample with every image changed as an image of 8 bits."""
    values = (own.x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = values.shape[3] == 1
    out = np.empty_like(values)
    for i, pixels in enumerate(values):
        changed = np.asarray(change(Image.fromarray(pixels[:, :, 0] if grey else pixels), i))
        out[i] = changed[:, :, None] if grey else changed
    return Sample(torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255), own.y)


_MATRICES: dict[str, Callable[[float], tuple[float, ...]]] = {
    "shear-x": lambda v: (1, v, 0, 0, 1, 0),
    "shear-y": lambda v: (1, 0, 0, v, 1, 0),
    "translate-x": lambda v: (1, 0, -int(v), 0, 1, 0),
    "translate-y": lambda v: (1, 0, 0, 0, 1, -int(v)),
}
_ENHANCERS: dict[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
_SIMPLE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
}
_RANDOM = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
_Part = tuple[str, int, int]  # operation, probability in tenths, level of 10
_POLICIES: tuple[tuple[_Part, _Part], ...] = (
    (("posterize", 4, 8), ("rotate", 6, 9)),
    (("solarize", 6, 5), ("autocontrast", 6, 0)),
    (("equalize", 8, 0), ("equalize", 6, 0)),
    (("posterize", 6, 7), ("posterize", 6, 6)),
    (("equalize", 4, 0), ("solarize", 2, 4)),
    (("equalize", 4, 0), ("rotate", 8, 8)),
    (("solarize", 6, 3), ("equalize", 6, 0)),
    (("posterize", 8, 5), ("equalize", 10, 0)),
    (("rotate", 2, 3), ("solarize", 6, 8)),
    (("equalize", 6, 0), ("posterize", 4, 6)),
    (("rotate", 8, 8), ("color", 4, 0)),
    (("rotate", 4, 9), ("equalize", 6, 0)),
    (("equalize", 0, 0), ("equalize", 8, 0)),
    (("invert", 6, 0), ("equalize", 10, 0)),
    (("color", 6, 4), ("contrast", 10, 8)),
    (("rotate", 8, 8), ("color", 10, 2)),
    (("color", 8, 8), ("solarize", 8, 7)),
    (("sharpness", 4, 7), ("invert", 6, 0)),
    (("shear-x", 6, 5), ("equalize", 10, 0)),
    (("color", 4, 0), ("equalize", 6, 0)),
    (("equalize", 4, 0), ("solarize", 2, 4)),
    (("solarize", 6, 5), ("autocontrast", 6, 0)),
    (("invert", 6, 0), ("equalize", 10, 0)),
    (("color", 6, 4), ("contrast", 10, 8)),
    (("equalize", 8, 0), ("equalize", 6, 0)),
)

COMPOSITIONS: dict[str, tuple[Step, ...]] = {
    "plain": (),
    "crop-flip": (crop, flip),
    "crop-flip-rotate": (crop, flip, rotate),
    "crop-flip-cutout": (crop, flip, black_square),
    "crop-randaugment": (crop, randaugment),
    "crop-autoaugment": (crop, autoaugment),
}


def compositions(names: Sequence[str], wanted: int) -> list[tuple[Step, ...]]:
    """Return the steps of the first ``wanted`` named views.

    Raises InputError for an unknown name, and if there are several but fewer than wanted.
    """
    for name in names:
        if name not in COMPOSITIONS:
            raise unknown("view in data.views", name, COMPOSITIONS)
    if 1 < len(names) < wanted:
        raise InputError(
            f"data.views names {len(names)} and the method takes {wanted}; name {wanted}, or one that all see"
        )
    return [COMPOSITIONS[name] for name in names[:wanted]]
