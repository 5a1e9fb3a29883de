"""Augmentation in batches has the distribution of torchvision's, one image at a time.

The same picture is augmented many times by both. A Kolmogorov-Smirnov test compares the distributions of several
statistics, pixels and means. Seeds are fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from support.foreign import importable

from steppe.data.transforms.basic import Sample
from steppe.data.transforms.registry import STEPS

SIZE, COUNT = 24, 500

pytestmark = pytest.mark.vision


@functools.cache
def picture() -> torch.Tensor:
    """Smooth colours with an edge (3, H, W) uint8, different at every pixel."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    bands = torch.stack([3 * row + 7 * column, 200 - 2 * row - 3 * column, 9 * row - 2 * column + 40])
    bands[:, 5:12, 3:9] = torch.tensor([250, 20, 90])[:, None, None]
    return bands.clamp(0, 255).to(torch.uint8)


def augmented(name: str) -> np.ndarray:
    x = picture().float().div(255).expand(COUNT, -1, -1, -1).contiguous()
    sample = Sample(x, torch.zeros(COUNT, 2))
    return STEPS[name](sample, sample, np.random.default_rng(0)).x.numpy()


def theirs(transform: Callable[[Any], Any], as_picture: bool) -> np.ndarray:
    pixels = picture()
    image: Any = Image.fromarray(pixels.permute(1, 2, 0).numpy()) if as_picture else pixels.float() / 255
    outputs = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(COUNT):
            out = transform(image)
            outputs.append(np.asarray(out).transpose(2, 0, 1) / np.float32(255) if as_picture else out.numpy())
    return np.stack(outputs)


def statistics(x: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of each image: means per channel, deviation, a corner, an edge and the middle."""
    x = x.astype(np.float64)
    return {
        "red": x[:, 0].mean(axis=(1, 2)),
        "blue": x[:, 2].mean(axis=(1, 2)),
        "spread": x.std(axis=(1, 2, 3)),
        "corner": x[:, 0, 0, 0],
        "edge": x[:, 1, SIZE // 2, -1],
        "middle": x[:, 2, SIZE // 2, SIZE // 2],
        "half": x[:, 0, :, : SIZE // 2].mean(axis=(1, 2)) - x[:, 0, :, SIZE // 2 :].mean(axis=(1, 2)),
    }


def p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Return the p-value of the hypothesis that both samples have one distribution."""
    # rounded, because values that differ in the last digit would break ties
    return float(ks_2samp(a.round(4), b.round(4), method="asymp").pvalue)


def torchvision_transform(name: str) -> tuple[Callable[[Any], Any], bool]:
    from torchvision import transforms as t

    transforms: dict[str, tuple[Any, bool]] = {
        "flip": (t.RandomHorizontalFlip(), False),
        "crop": (t.RandomCrop(SIZE, padding=SIZE // 8), False),
        "resized-crop": (t.RandomResizedCrop(SIZE, antialias=False), False),
        "jitter": (t.ColorJitter(0.4, 0.4, 0.4, 0.0), False),
        "rotate": (t.RandomRotation(15), True),
        "randaugment": (t.RandAugment(num_ops=2, magnitude=9), True),
    }
    return transforms[name]


@pytest.mark.parametrize("name", ["flip", "crop", "resized-crop", "jitter", "rotate", "randaugment"])
def test_outputs_are_distributed_as_torchvision_s(name: str) -> None:
    importable("torchvision")
    a, b = statistics(augmented(name)), statistics(theirs(*torchvision_transform(name)))
    for kind in a:
        assert p_value(a[kind], b[kind]) > 1e-3, (name, kind)


def test_other_parameters_differ_significantly() -> None:
    importable("torchvision")
    from torchvision import transforms as t

    for name, wrong, as_picture in (
        ("rotate", t.RandomRotation(25), True),
        ("flip", t.RandomHorizontalFlip(0.2), False),
        ("jitter", t.ColorJitter(0.7, 0.4, 0.4, 0.0), False),
    ):
        a, b = statistics(augmented(name)), statistics(theirs(wrong, as_picture))
        assert min(p_value(a[kind], b[kind]) for kind in a) < 1e-3, name
