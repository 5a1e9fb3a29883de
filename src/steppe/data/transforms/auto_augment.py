"""RandAugment, AutoAugment and the named compositions of steps that give several views of one image.

The five compositions of OKDPH's supplement (Zhang et al., CVPR 2023, arXiv:2303.14666, table 2), all after a
random crop, and the unchanged image:

    1  crop-flip          mirrored left to right with probability 1/2
    2  crop-flip-rotate   mirrored, then rotated by up to 15 degrees
    3  crop-flip-cutout   mirrored, then a square of half the side blacked out, always
    4  crop-randaugment   two of 14 operations at strength 9 of 30 (Cubuk et al., arXiv:1909.13719)
    5  crop-autoaugment   a policy of AutoAugment for ImageNet (Cubuk et al., arXiv:1805.09501)
       plain              nothing, not even the crop

Ranges and policies are torchvision's defaults; pixels shifted in from outside are black.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steppe.data.transforms import pil_ops
from steppe.data.transforms.basic import Sample, Transform, boxes, crop, flip
from steppe.data.transforms.draws import Draws, to_tensor
from steppe.data.transforms.pil_ops import to_float, to_uint8, where
from steppe.errors import InputError, unknown

_ANGLE = 15.0  # degrees


def rotate(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Rotate each image by a uniform angle of up to 15 degrees about its centre, nearest pixels, corners black."""
    angles = (2 * rng.random(len(sample.x)) - 1) * _ANGLE
    return _in_type_of(sample, pil_ops.rotate(to_uint8(sample.x), to_tensor(angles, sample.x)))


def black_square(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Black out a square of half the side around a uniform pixel, clipped at the borders, in every image."""
    count, _, h, w = sample.x.shape
    square = boxes(rng.integers(0, h, count), rng.integers(0, w, count), np.full(count, h // 2), h, w)
    return Sample(where(to_tensor(square, sample.x)[:, None], sample.x.new_zeros(1), sample.x), sample.y)


def randaugment(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Apply two random operations to each image, with replacement, at strength 9 of 30 and random sign."""
    count, _, h, w = sample.x.shape
    x = to_uint8(sample.x)
    values = np.array(
        [[strength(name, 9, 31, h, w, negative=negative) for negative in (False, True)] for name in _RANDOM]
    )
    for operation, side in [(rng.integers(0, len(_RANDOM), count), rng.integers(0, 2, count)) for _ in range(2)]:
        x = apply_each(x, [_RANDOM[k] for k in operation], values[operation, side])
    return _in_type_of(sample, x)


def autoaugment(sample: Sample, partner: Sample, rng: Draws) -> Sample:
    """Apply one of 25 policies to each image: two operations, each with its own probability and strength."""
    count, _, h, w = sample.x.shape
    policy = rng.integers(0, len(_POLICIES), count)
    chances = [rng.random(count) for _ in range(2)]
    sides = [rng.integers(0, 2, count) for _ in range(2)]
    x = to_uint8(sample.x)
    for part, chance, side in zip(range(2), chances, sides, strict=True):
        names, values = ["identity"] * count, [0.0] * count
        for i in range(count):
            name, tenths, level = _POLICIES[policy[i]][part]
            if chance[i] < tenths / 10:
                names[i], values[i] = name, strength(name, level, 10, h, w, negative=not side[i])
        x = apply_each(x, names, values)
    return _in_type_of(sample, x)


def _in_type_of(sample: Sample, x: Tensor) -> Sample:
    """Return uint8 images ``x`` with the labels and the type, uint8 or float32, of ``sample``."""
    return Sample(x if sample.x.dtype == torch.uint8 else to_float(x), sample.y)


def strength(name: str, level: int, levels: int, h: int, w: int, *, negative: bool) -> float:
    """Return an operation's value at ``level`` of ``levels``; ``negative`` flips its sign, where it has one.

    Shears are slopes, translations pixels, rotations degrees, colour changes relative; posterize keeps that many
    bits, solarize inverts from that value on.
    """
    share = level / (levels - 1)
    if name == "posterize":
        return 8 - round(level / ((levels - 1) / 4))
    if name == "solarize":
        return 255 * (1 - share)
    if name in ("autocontrast", "equalize", "invert", "identity"):
        return 0.0
    size = w if name == "translate-x" else h
    largest = {"shear": 0.3, "translate": 150 / 331 * size, "rotate": 30.0}.get(name.split("-")[0], 0.9)
    return -share * largest if negative else share * largest


def apply_each(x: Tensor, names: Sequence[str], values: Sequence[float] | np.ndarray) -> Tensor:
    """Return uint8 images (B, C, H, W), to each of which its operation was applied, with its `strength`."""
    out, value = x.clone(), np.asarray(values)
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    for name, members in rows.items():
        index = to_tensor(np.array(members), x)
        changed = pil_ops.OPERATIONS[name](x.index_select(0, index), to_tensor(value[members], x))
        out.index_copy_(0, index, changed)
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


def compositions(names: Sequence[str], count: int) -> list[tuple[Transform, ...]]:
    """Return the steps of the first ``count`` named views.

    Raises InputError for an unknown name, and for several names but fewer than ``count``.
    """
    for name in names:
        if name not in COMPOSITIONS:
            raise unknown("view in data.views", name, COMPOSITIONS)
    if 1 < len(names) < count:
        raise InputError(
            f"data.views has {len(names)} views and the method takes {count}; give {count}, or one for all"
        )
    return [COMPOSITIONS[name] for name in names[:count]]
