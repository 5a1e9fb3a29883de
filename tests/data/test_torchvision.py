"""Augmentation in batches against torchvision's, one image at a time: equal in distribution.

The same picture goes through both many times. What comes out is looked at through several numbers, pixels and
means; for each a Kolmogorov-Smirnov test asks whether the two samples are of one distribution. Seeds are fixed, so
each either holds or does not.
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
    """Smooth colours with an edge (3, H, W) uint8, different at every place."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    bands = torch.stack([3 * row + 7 * column, 200 - 2 * row - 3 * column, 9 * row - 2 * column + 40])
    bands[:, 5:12, 3:9] = torch.tensor([250, 20, 90])[:, None, None]
    return bands.clamp(0, 255).to(torch.uint8)


def ours(name: str) -> np.ndarray:
    x = picture().float().div(255).expand(COUNT, -1, -1, -1).contiguous()
    own = Sample(x, torch.zeros(COUNT, 2))
    return STEPS[name](own, own, np.random.default_rng(0)).x.numpy()


def theirs(transform: Callable[[Any], Any], as_picture: bool) -> np.ndarray:
    pixels = picture()
    given: Any = Image.fromarray(pixels.permute(1, 2, 0).numpy()) if as_picture else pixels.float() / 255
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(COUNT):
            out = transform(given)
            found.append(np.asarray(out).transpose(2, 0, 1) / np.float32(255) if as_picture else out.numpy())
    return np.stack(found)


def looked_at(x: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of each image: means per channel, how it varies, a corner, an edge and the middle."""
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


def same(a: np.ndarray, b: np.ndarray) -> float:
    """Return how probable so large a difference is between samples of one distribution."""
    # values that differ in the last digit are one value, or ties would look like a difference
    return float(ks_2samp(a.round(4), b.round(4), method="asymp").pvalue)


def made_by_torchvision(name: str) -> tuple[Callable[[Any], Any], bool]:
    from torchvision import transforms as t

    held: dict[str, tuple[Any, bool]] = {
        "flip": (t.RandomHorizontalFlip(), False),
        "crop": (t.RandomCrop(SIZE, padding=SIZE // 8), False),
        "resized-crop": (t.RandomResizedCrop(SIZE, antialias=False), False),
        "jitter": (t.ColorJitter(0.4, 0.4, 0.4, 0.0), False),
        "rotate": (t.RandomRotation(15), True),
        "randaugment": (t.RandAugment(num_ops=2, magnitude=9), True),
    }
    return held[name]


@pytest.mark.parametrize("name", ["flip", "crop", "resized-crop", "jitter", "rotate", "randaugment"])
def test_what_comes_out_is_distributed_as_torchvision_s(name: str) -> None:
    importable("torchvision")
    a, b = looked_at(ours(name)), looked_at(theirs(*made_by_torchvision(name)))
    for kind in a:
        assert same(a[kind], b[kind]) > 1e-3, (name, kind)


def test_the_tests_would_tell_a_wider_turn_and_a_rarer_mirror() -> None:
    importable("torchvision")
    from torchvision import transforms as t

    for name, wrong, as_picture in (
        ("rotate", t.RandomRotation(25), True),
        ("flip", t.RandomHorizontalFlip(0.2), False),
        ("jitter", t.ColorJitter(0.7, 0.4, 0.4, 0.0), False),
    ):
        a, b = looked_at(ours(name)), looked_at(theirs(wrong, as_picture))
        assert min(same(a[kind], b[kind]) for kind in a) < 1e-3, name


@pytest.mark.parametrize(("name", "alpha"), [("mixup", 1.0), ("cutmix", 0.25)])
def test_labels_are_mixed_as_torchvision_mixes_them(name: str, alpha: float) -> None:
    importable("torchvision")
    from torchvision.transforms import v2

    many = 3000
    mixer = (v2.MixUp if name == "mixup" else v2.CutMix)(alpha=alpha, num_classes=2)
    shares = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(many):  # it draws once for a batch, we for each image
            _, y = mixer(torch.zeros(2, 3, SIZE, SIZE), torch.tensor([0, 1]))
            shares.append(float(y[0, 0]))
    zero = Sample(torch.zeros(many, 3, SIZE, SIZE), torch.tensor([[1.0, 0.0]]).expand(many, 2))
    one = Sample(torch.ones(many, 3, SIZE, SIZE), torch.tensor([[0.0, 1.0]]).expand(many, 2))
    own = STEPS[name](zero, one, np.random.default_rng(0)).y[:, 0].numpy()
    least = 1 - 1 / SIZE**2 if name == "cutmix" else 1.0  # ours pastes one pixel at least, as the notebook does
    assert same(own.astype(np.float64), np.minimum(shares, least)) > 1e-3
