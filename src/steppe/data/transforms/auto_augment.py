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
from functools import cache

import numpy as np
import torch
from torch import Tensor

from steppe.data.transforms import pil_ops
from steppe.data.transforms.basic import Sample, Transform, boxes, crop, edges, flip
from steppe.data.transforms.draws import Draws, Plan
from steppe.data.transforms.pil_ops import to_float, to_uint8, where
from steppe.errors import InputError, unknown

_ANGLE = 15.0  # degrees


def _draw_rotate(rng: Draws, shape: Sequence[int]) -> Plan:
    return {"angle": (2 * rng.random(shape[0]) - 1) * _ANGLE}


def _rotate(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Rotate each image by a uniform angle of up to 15 degrees about its centre, nearest pixels, corners black."""
    return _in_type_of(sample, pil_ops.rotate(to_uint8(sample.x), plan["angle"]))


def _draw_black_square(rng: Draws, shape: Sequence[int]) -> Plan:
    count, _, h, w = shape
    return edges(rng.integers(0, h, count), rng.integers(0, w, count), h // 2, h, w)


def _black_square(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Black out a square of half the side around a uniform pixel, clipped at the borders, in every image."""
    square = boxes(plan, *sample.x.shape[2:])
    return Sample(where(square[:, None], sample.x.new_zeros(1), sample.x), sample.y)


def _draw_randaugment(rng: Draws, shape: Sequence[int]) -> Plan:
    """Draw two operations for each image, with replacement, at strength 9 of 30 and random sign."""
    count, _, h, w = shape
    values = _randaugment_strengths(h, w)
    draws = [(rng.integers(0, len(_RANDOM), count), rng.integers(0, 2, count)) for _ in range(2)]
    return {"rounds": [_by_operation(_RANDOM, kind, values[kind, side]) for kind, side in draws]}


def _draw_autoaugment(rng: Draws, shape: Sequence[int]) -> Plan:
    """Draw one of 25 policies for each image: two operations, each with its own probability and strength."""
    count, _, h, w = shape
    policy = rng.integers(0, len(_POLICIES), count)
    chances = [rng.random(count) for _ in range(2)]
    sides = [rng.integers(0, 2, count) for _ in range(2)]
    names, kinds, shares, values = _policy_tables(h, w)
    rounds = []
    for part, chance, side in zip(range(2), chances, sides, strict=True):
        applied = chance < shares[policy, part]
        kind = np.where(applied, kinds[policy, part], 0)
        rounds.append(_by_operation(names, kind, np.where(applied, values[policy, part, side], 0.0)))
    return {"rounds": rounds}


def _by_operation(names: Sequence[str], kind: np.ndarray, value: np.ndarray) -> Plan:
    """Return the images' positions by their operations ``names[kind]``, their values, and the groups' sizes."""
    order = np.argsort(kind, kind="stable")
    groups = tuple((names[k], int(n)) for k, n in enumerate(np.bincount(kind)) if n)
    return {"order": order, "value": value[order], "groups": groups}


def _in_rounds(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Apply to each image (uint8 inside) its operations, one in each round of the plan."""
    x = to_uint8(sample.x)
    for part in plan["rounds"]:
        sizes = [count for _, count in part["groups"]]
        images = torch.split(x.index_select(0, part["order"]), sizes)
        groups = zip(part["groups"], images, torch.split(part["value"], sizes), strict=True)
        changed = [pil_ops.OPERATIONS[name](own, value) for (name, _), own, value in groups]
        x = torch.empty_like(x).index_copy_(0, part["order"], torch.cat(changed))
    return _in_type_of(sample, x)


rotate = Transform(_draw_rotate, _rotate)
black_square = Transform(_draw_black_square, _black_square)
randaugment = Transform(_draw_randaugment, _in_rounds)
autoaugment = Transform(_draw_autoaugment, _in_rounds)


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


@cache
def _randaugment_strengths(h: int, w: int) -> np.ndarray:
    """Return the strengths (operation, side) of RandAugment, of which the second side has the other sign."""
    return np.array([[strength(name, 9, 31, h, w, negative=side) for side in (False, True)] for name in _RANDOM])


@cache
def _policy_tables(h: int, w: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Return the names of operations; of each policy's two parts the operation, the probability, the strengths.

    The first operation is the identity; of two strengths the first has the other sign.
    """
    names = ("identity", *sorted({name for policy in _POLICIES for name, _, _ in policy}))
    kinds = np.array([[names.index(name) for name, _, _ in policy] for policy in _POLICIES])
    shares = np.array([[tenths / 10 for _, tenths, _ in policy] for policy in _POLICIES])
    values = np.array(
        [
            [[strength(name, level, 10, h, w, negative=not side) for side in (0, 1)] for name, _, level in policy]
            for policy in _POLICIES
        ]
    )
    return names, kinds, shares, values


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
