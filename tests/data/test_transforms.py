"""Augmentation steps against slow references, torch's own operations and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.data import Images, Loader, Normalizer
from steppe.data.transforms.basic import _ORDERS, Sample, crop, cutout, flip, jitter, resized_crop
from steppe.data.transforms.draws import Draws
from steppe.data.transforms.mixup_cutmix import cutmix, mixup
from steppe.data.transforms.registry import make_steps
from steppe.errors import InputError


def photos(count: int = 24, size: int = 20, channels: int = 3) -> Sample:
    g = torch.Generator().manual_seed(0)
    y = F.one_hot(torch.randint(0, 4, (count,), generator=g), 4).float()
    return Sample(torch.rand(count, channels, size, size, generator=g), y)


def partner_of(sample: Sample) -> Sample:
    """Other images, whose values are above 1.5, with other labels."""
    return Sample(sample.x.flip(0) + 2, sample.y.flip(0))


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    sample = photos(200)
    flipped = flip(sample, sample, np.random.default_rng(3)).x
    same = (flipped == sample.x).all(dim=(1, 2, 3))
    mirrored = (flipped == sample.x.flip(3)).all(dim=(1, 2, 3))
    assert bool((same ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 24)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_cuts_the_rows_and_columns_that_it_draws(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, pad = torch.Generator().manual_seed(0), shape[1] // 8
    sample = Sample(torch.randint(1, 256, (40, *shape), generator=g).to(dtype), torch.zeros(40, 4))
    rng = np.random.default_rng(3)
    top, left = (rng.integers(0, 2 * pad + 1, 40) for _ in range(2))
    assert (top != left).any()
    cropped = crop(sample, sample, np.random.default_rng(3)).x
    for before, after, r, c in zip(sample.x, cropped, top, left, strict=True):
        padded = np.pad(before.numpy(), ((0, 0), (pad, pad), (pad, pad)))
        assert np.array_equal(after.numpy(), padded[:, r : r + shape[1], c : c + shape[2]])


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 6, 9)])
def test_a_crop_may_pad_by_reflection(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, (30, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (step,) = make_steps(["crop:pad=2,mode=reflect"])
    cropped = step(Sample(x, torch.zeros(30, 1)), Sample(x, torch.zeros(30, 1)), np.random.default_rng(3)).x
    rng, places = np.random.default_rng(3), set()
    top, left = (rng.integers(0, 5, 30) for _ in range(2))
    for before, after, r, c in zip(x, cropped, top, left, strict=True):
        padded = F.pad(before.float(), (2, 2, 2, 2), mode="reflect").byte()
        assert torch.equal(after, padded[:, r : r + shape[1], c : c + shape[2]])
        places |= {("row", r), ("column", c)}
    assert len(places) == 10 and cropped.dtype == torch.uint8
    wide = make_steps([f"crop:pad={shape[1]},mode=reflect"])[0]
    with pytest.raises(InputError, match=f"pad={shape[1]} by reflection, and images are"):
        wide.draw(Draws(np.random.default_rng(0)), (30, *shape))
    images = Images(x, torch.zeros(30, dtype=torch.long))
    options = {"classes": 1, "batch": 5, "normalize": Normalizer.of("unit", images), "seed": 0}
    for steps in ({"augment": [f"crop:pad={shape[1]},mode=reflect"]}, {"augment": [], "views": [[], [wide]]}):
        with pytest.raises(InputError, match=f"pad={shape[1]} by reflection, and images are"):  # before training
            Loader(images, **options, **steps)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("crop:pad=0", "crop with pad=0; give a whole number of pixels, at least 1"),
        ("crop:mode=edge", "crop with mode=edge; choose zeros or reflect"),
        ("crop:size=3", "unknown setting of crop in data.augment 'size'"),
        ("flip:mode=never", "flip with mode=never; choose random or alternate"),
        ("cutout:size=3", "cutout with size=3, and cutout takes no settings"),
        ("crops:pad=2", "unknown augmentation in data.augment 'crops'; did you mean 'crop'"),
    ],
)
def test_impossible_settings_of_a_step_are_refused(step: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_steps([step])


@given(st.integers(0, 500))
def test_cutout_blanks_one_square_of_at_most_half_the_side(seed: int) -> None:
    white = Sample(torch.ones(20, 3, 16, 16), torch.zeros(20, 4))
    holes = cutout(white, white, np.random.default_rng(seed)).x[:, 0] == 0
    for hole in holes:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert int(hole.sum()) == len(rows) * len(columns)
        assert max(len(rows), len(columns)) <= 8
    assert 0 < int(holes.any(dim=(1, 2)).sum()) < 20


def test_mixup_is_the_convex_combination_of_images_and_labels() -> None:
    sample, other = photos(), partner_of(photos())
    mixed = mixup(sample, other, np.random.default_rng(5))
    shares = torch.from_numpy(np.random.default_rng(5).beta(1.0, 1.0, 24)).float()
    for i, share in enumerate(shares):
        torch.testing.assert_close(mixed.x[i], share * sample.x[i] + (1 - share) * other.x[i])
        torch.testing.assert_close(mixed.y[i], share * sample.y[i] + (1 - share) * other.y[i])


def cutmix_reference(sample: Sample, other: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The SADT notebook's CutMix, one image at a time, with loops over pixels."""
    x, y = sample.x.numpy().copy(), sample.y.numpy().copy()
    count, _, size, _ = x.shape
    lam = rng.beta(0.25, 0.25, count)
    rows, columns = (rng.integers(0, size, count) for _ in range(2))
    for i in range(count):
        side = math.floor(size * math.sqrt(1 - lam[i]))
        top, left = max(rows[i] - side // 2, 0), max(columns[i] - side // 2, 0)
        height = min(rows[i] + side // 2, size) - top or 1
        width = min(columns[i] + side // 2, size) - left or 1
        for r in range(top, top + height):
            for c in range(left, left + width):
                x[i, :, r, c] = other.x.numpy()[i, :, r, c]
        share = 1 - height * width / size**2
        y[i] = share * y[i] + (1 - share) * other.y.numpy()[i]
    return x, y


@pytest.mark.parametrize("size", [8, 13, 32])
def test_cutmix_is_that_of_the_notebook(size: int) -> None:
    sample = photos(40, size)
    other = partner_of(sample)
    mixed = cutmix(sample, other, np.random.default_rng(5))
    x, y = cutmix_reference(sample, other, np.random.default_rng(5))
    assert np.array_equal(mixed.x.numpy(), x)
    assert np.allclose(mixed.y.numpy(), y, atol=1e-6)
    assert (mixed.x > 1.5).any(dim=(1, 2, 3)).all()  # a box of at least one pixel in every image


def crop_boxes(size: int, count: int, seed: int) -> np.ndarray:
    """Boxes (top, left, height, width) of resized crops, read from images whose values are their coordinates."""
    position = torch.arange(size, dtype=torch.float32)
    ramp = torch.stack([position[None, :].expand(size, size), position[:, None].expand(size, size)])
    ramps = Sample(ramp.expand(count, 2, size, size).contiguous(), torch.zeros(count, 4))
    cropped = resized_crop(ramps, ramps, np.random.default_rng(seed)).x.double()
    left, right = cropped[:, 0, 0, 0], cropped[:, 0, 0, -1]
    top, bottom = cropped[:, 1, 0, 0], cropped[:, 1, -1, 0]
    return torch.stack([top, left, bottom - top + 1, right - left + 1], 1).round().long().numpy()


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([9, 16, 20]))
def test_a_resized_crop_is_torch_s_bilinear_stretch_of_a_box_of_the_image(seed: int, size: int) -> None:
    sample = photos(8, size)
    cropped = resized_crop(sample, sample, np.random.default_rng(seed)).x
    for image, after, (top, left, height, width) in zip(sample.x, cropped, crop_boxes(size, 8, seed), strict=True):
        box = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(box, (size, size), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(after, expected, atol=1e-5)


def test_boxes_have_the_documented_distribution() -> None:
    """Where no box is refused, areas are uniform from 8 % on, and log-ratios between those of 3/4 and 4/3."""
    size = 100
    top, left, height, width = np.concatenate([crop_boxes(size, 200, seed) for seed in range(15)]).T
    assert (top >= 0).all() and (top + height <= size).all()
    assert (left >= 0).all() and (left + width <= size).all()
    area, ratio = height * width / size**2, np.log(width / height)
    assert area.min() >= 0.07 and np.abs(ratio).max() <= math.log(4 / 3) + 0.04
    small = area < 0.75  # any ratio fits below this area: no box is refused
    assert np.abs(np.histogram(area[small], np.linspace(0.08, 0.75, 5))[0] / small.sum() - 0.25).max() < 0.04
    assert abs(ratio[small].mean()) < 0.02
    assert ratio[small].std() == pytest.approx(math.log(4 / 3) / math.sqrt(3), rel=0.05)
    free = height < 60  # more than 40 positions
    position = top[free] / (size - height)[free]
    assert position.mean() == pytest.approx(0.5, abs=0.02)
    assert position.std() == pytest.approx(1 / math.sqrt(12), rel=0.05)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_brightness_contrast_and_saturation_in_a_random_order(channels: int) -> None:
    sample = photos(12, 6, channels)
    jittered = jitter(sample, sample, np.random.default_rng(3)).x
    rng = np.random.default_rng(3)
    order = _ORDERS[rng.integers(0, 6, 12)]
    assert len(set(map(tuple, _ORDERS.tolist()))) == 6 and len(set(map(tuple, order.tolist()))) > 3
    factors = np.stack([0.6 + 0.8 * rng.random(12) for _ in range(3)], axis=1)
    for i in range(12):
        expected = jitter_reference(sample.x[i].numpy(), order[i], factors[i])
        assert np.allclose(jittered[i].numpy(), expected, atol=1e-5)
