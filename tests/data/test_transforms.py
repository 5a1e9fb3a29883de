"""Random resized crops and colour jitter against torch's own operations and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.foreign import importable

from steppe.data.transforms.basic import _ORDERS, RowDraws, Sample, jitter, resized_crop


def photos(count: int = 24, size: int = 20, channels: int = 3) -> Sample:
    x = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))
    return Sample(x, torch.zeros(count, 4))


def ramp(count: int, size: int) -> Sample:
    """Images whose value tells its column (channel 0) and its row (channel 1), in pixels."""
    place = torch.arange(size, dtype=torch.float32)
    both = torch.stack([place[None, :].expand(size, size), place[:, None].expand(size, size)])
    return Sample(both.expand(count, 2, size, size).contiguous(), torch.zeros(count, 4))


def boxes(size: int, count: int, seed: int) -> np.ndarray:
    """Boxes (top, left, height, width) read off a ramp: corner pixels of a stretched box are its own corners."""
    got = resized_crop(ramp(count, size), ramp(count, size), np.random.default_rng(seed)).x.double()
    left, right = got[:, 0, 0, 0], got[:, 0, 0, -1]
    top, bottom = got[:, 1, 0, 0], got[:, 1, -1, 0]
    return torch.stack([top, left, bottom - top + 1, right - left + 1], 1).round().long().numpy()


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([9, 16, 20]))
def test_a_resized_crop_is_torch_s_bilinear_stretch_of_a_box_of_the_image(seed: int, size: int) -> None:
    own = photos(8, size)
    got = resized_crop(own, own, np.random.default_rng(seed)).x
    for image, after, (top, left, height, width) in zip(own.x, got, boxes(size, 8, seed), strict=True):
        box = image[None, :, top : top + height, left : left + width]
        wanted = F.interpolate(box, (size, size), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(after, wanted, atol=1e-5)


def test_boxes_have_the_areas_ratios_and_places_they_are_drawn_from() -> None:
    """Where nothing is refused, areas are uniform from 8 % on, and log-ratios between those of 3/4 and 4/3."""
    size = 100
    parts = [boxes(size, 200, seed) for seed in range(15)]
    top, left, height, width = np.concatenate(parts).T
    assert (top >= 0).all() and (top + height <= size).all()
    assert (left >= 0).all() and (left + width <= size).all()
    area, ratio = height * width / size**2, np.log(width / height)
    assert area.min() >= 0.07 and np.abs(ratio).max() <= math.log(4 / 3) + 0.04
    small = area < 0.75  # below that any ratio fits: no box is refused
    assert np.abs(np.histogram(area[small], np.linspace(0.08, 0.75, 5))[0] / small.sum() - 0.25).max() < 0.04
    assert abs(ratio[small].mean()) < 0.02
    assert ratio[small].std() == pytest.approx(math.log(4 / 3) / math.sqrt(3), rel=0.05)
    free = height < 60  # with more than 40 places to go
    where = top[free] / (size - height)[free]
    assert where.mean() == pytest.approx(0.5, abs=0.02)
    assert where.std() == pytest.approx(1 / math.sqrt(12), rel=0.05)


def jitter_reference(image: np.ndarray, order: tuple[int, ...], factors: np.ndarray) -> np.ndarray:
    """Brightness, contrast and saturation one after the other, with loops over pixels, in float64."""
    x = image.astype(np.float64)
    channels, height, width = x.shape
    for kind in order:
        grey = np.empty((height, width))
        for r in range(height):
            for c in range(width):
                p = x[:, r, c]
                grey[r, c] = p[0] if channels == 1 else 0.2989 * p[0] + 0.587 * p[1] + 0.114 * p[2]
        f = factors[kind]
        for r in range(height):
            for c in range(width):
                target = (0.0, grey.mean(), grey[r, c])[kind]
                x[:, r, c] = np.clip(f * x[:, r, c] + (1 - f) * target, 0, 1)
    return x


ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_brightness_contrast_and_saturation_in_the_order_drawn(channels: int) -> None:
    own = photos(12, 6, channels)
    got = jitter(own, own, np.random.default_rng(3)).x
    draws = np.random.default_rng(3)
    order = draws.integers(0, 6, 12)
    assert _ORDERS.tolist() == [list(o) for o in ORDERS]
    factors = np.stack([0.6 + 0.8 * draws.random(12) for _ in range(3)], axis=1)
    assert len(set(order.tolist())) > 3
    for i in range(12):
        wanted = jitter_reference(own.x[i].numpy(), ORDERS[order[i]], factors[i])
        assert np.allclose(got[i].numpy(), wanted, atol=1e-5)


@given(st.integers(0, 10_000))
def test_jitter_stays_in_range_leaves_black_alone_and_grey_grey(seed: int) -> None:
    black = Sample(torch.zeros(5, 3, 4, 4), torch.zeros(5, 4))
    assert not jitter(black, black, np.random.default_rng(seed)).x.any()
    own = photos(5, 4)
    got = jitter(own, own, np.random.default_rng(seed)).x
    assert float(got.min()) >= 0 and float(got.max()) <= 1
    assert not torch.equal(got, own.x)
    grey = Sample(own.x[:, :1].expand(-1, 3, -1, -1), own.y)
    after = jitter(grey, grey, np.random.default_rng(seed)).x
    assert torch.allclose(after, after[:, :1].expand_as(after), atol=1e-3)  # 0.2989 + 0.587 + 0.114 is 0.9999


@pytest.mark.parametrize("step", [resized_crop, jitter])
def test_rows_of_a_batch_are_augmented_as_in_the_whole_batch(step) -> None:
    own = photos(11, 12)
    whole = step(own, own, np.random.default_rng(9)).x
    for rows in (slice(0, 4), slice(4, 11)):
        part = Sample(own.x[rows], own.y[rows])
        assert torch.equal(step(part, part, RowDraws(np.random.default_rng(9), rows, 11)).x, whole[rows])
    assert torch.equal(own.x, photos(11, 12).x)


@pytest.mark.vision
def test_boxes_are_spread_as_those_of_torchvision() -> None:
    importable("torchvision")
    from torchvision.transforms import RandomResizedCrop

    size = 40
    ours = np.concatenate([boxes(size, 500, seed) for seed in range(4)])
    torch.manual_seed(0)
    blank = torch.zeros(3, size, size)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)])
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        grid = np.unique(np.concatenate([measure(ours), measure(theirs)]))
        shares = [np.searchsorted(np.sort(measure(b)), grid, side="right") / len(b) for b in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(2 / 2000)  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.vision
def test_jitter_is_torchvision_s_three_adjustments() -> None:
    importable("torchvision")
    from torchvision.transforms import functional as tf

    own = photos(12, 8)
    got = jitter(own, own, np.random.default_rng(3)).x
    draws = np.random.default_rng(3)
    order = _ORDERS[draws.integers(0, 6, 12)]
    factors = np.stack([0.6 + 0.8 * draws.random(12) for _ in range(3)], axis=1)
    adjust = (tf.adjust_brightness, tf.adjust_contrast, tf.adjust_saturation)
    for image, after, kinds, factor in zip(own.x, got, order, factors, strict=True):
        for kind in kinds:
            image = adjust[kind](image, float(factor[kind]))
        assert torch.allclose(after, image, atol=1e-5)
