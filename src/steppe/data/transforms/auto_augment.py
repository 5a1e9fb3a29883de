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

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steppe.data.transforms import pil_ops
from steppe.data.transforms.basic import Draws, Sample, Transform, crop, flip, placed
from steppe.data.transforms.pil_ops import eight_bits, picked, unit
from steppe.errors import InputError, unknown

_ANGLE = 15.0  # degrees


def rotate(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Turn each image by a uniform angle of up to 15 degrees about its middle, nearest pixels, corners black."""
    angles = (2 * rng.random(len(own.x)) - 1) * _ANGLE
    return _as_given(own, pil_ops.rotate(eight_bits(own.x), placed(angles, own.x)))


def black_square(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Black out a square of half the side around a uniform pixel, clipped at the edges, in every image."""
    count, _, h, w = own.x.shape
    half = h // 4
    rows, columns = (placed(rng.integers(0, n, count), own.x) for n in (h, w))

    def band(centre: Tensor, length: int) -> Tensor:
        place = torch.arange(length, device=centre.device)
        return (place >= (centre - half)[:, None]) & (place < (centre + half)[:, None])

    inside = band(rows, h)[:, :, None] & band(columns, w)[:, None, :]
    return Sample(picked(inside[:, None], own.x.new_zeros(1), own.x), own.y)


def randaugment(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Apply two operations to each image, drawn with replacement, at strength 9 of 30, to either side."""
    count, _, h, w = own.x.shape
    x = eight_bits(own.x)
    values = np.array(
        [[strength(name, 9, 31, h, w, turned=turned) for turned in (False, True)] for name in _RANDOM]
    )
    for chosen, side in [(rng.integers(0, len(_RANDOM), count), rng.integers(0, 2, count)) for _ in range(2)]:
        x = applied(x, [_RANDOM[k] for k in chosen], values[chosen, side])
    return _as_given(own, x)


def autoaugment(own: Sample, partner: Sample, rng: Draws) -> Sample:
    """Apply one of 25 policies to each image: two operations, each with its own probability and strength."""
    count, _, h, w = own.x.shape
    chosen = rng.integers(0, len(_POLICIES), count)
    luck = [rng.random(count) for _ in range(2)]
    sides = [rng.integers(0, 2, count) for _ in range(2)]
    x = eight_bits(own.x)
    for part, chance, side in zip(range(2), luck, sides, strict=True):
        names, values = ["identity"] * count, [0.0] * count
        for i in range(count):
            name, tenths, level = _POLICIES[chosen[i]][part]
            if chance[i] < tenths / 10:
                names[i], values[i] = name, strength(name, level, 10, h, w, turned=not side[i])
        x = applied(x, names, values)
    return _as_given(own, x)


def _as_given(own: Sample, x: Tensor) -> Sample:
    """Return uint8 images in the form that ``own`` has them in."""
    return Sample(x if own.x.dtype == torch.uint8 else unit(x), own.y)


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


def applied(x: Tensor, names: Sequence[str], values: Sequence[float] | np.ndarray) -> Tensor:
    """Return images (B, C, H, W) uint8, each after the operation of its name with its value (see `strength`)."""
    out, value = x.clone(), np.asarray(values)
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    for name, of in rows.items():
        here = placed(np.array(of), x)
        out.index_copy_(0, here, pil_ops.OPERATIONS[name](x.index_select(0, here), placed(value[of], x)))
    return out


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

COMPOSITIONS: dict[str, tuple[Transform, ...]] = {
    "plain": (),
    "crop-flip": (crop, flip),
    "crop-flip-rotate": (crop, flip, rotate),
    "crop-flip-cutout": (crop, flip, black_square),
    "crop-randaugment": (crop, randaugment),
    "crop-autoaugment": (crop, autoaugment),
}


def compositions(names: Sequence[str], wanted: int) -> list[tuple[Transform, ...]]:
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
