"""Corruptions: exact where they have a formula, else of known statistics; stronger with severity, reproducible."""

import colorsys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from steppe.data.dataset import Images
from steppe.diagnostics.corruptions import EXTRA, FAMILIES, STANDARD, Robustness, corrupt, weather
from steppe.diagnostics.corruptions.digital import elastic_transform, glass_blur, smear
from steppe.diagnostics.corruptions.weather import clouds
from steppe.errors import InputError


def images_of(x: torch.Tensor) -> Images:
    return Images(x, torch.zeros(len(x), dtype=torch.long))


def photos(count: int = 6, size: int = 32) -> Images:
    """Smooth coloured pictures with edges."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        image = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(30, 120, 3)))
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            a, b = sorted(rng.integers(0, size, 2).tolist()), sorted(rng.integers(0, size, 2).tolist())
            colour = tuple(int(v) for v in rng.integers(60, 220, 3))
            draw.ellipse((a[0], b[0], a[1] + 3, b[1] + 3), fill=colour)
        pictures.append(np.moveaxis(np.asarray(image), -1, 0))
    return images_of(torch.from_numpy(np.stack(pictures)))


def flat(value: int, channels: int = 3, count: int = 4) -> Images:
    return images_of(torch.full((count, channels, 32, 32), value, dtype=torch.uint8))


def unit(images: Images) -> np.ndarray:
    return images.x.numpy() / 255.0


@pytest.mark.parametrize("name", [*STANDARD, *EXTRA])
def test_equal_seeds_give_equal_bits_and_the_images_are_unchanged(name):
    images = photos(3)
    before = images.x.clone()
    one, two = corrupt(images, name, 3), corrupt(images, name, 3)
    assert torch.equal(one.x, two.x) and torch.equal(images.x, before)
    assert not torch.equal(one.x, before) and torch.equal(one.y, images.y)
    fixed = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    fixed += ("gaussian_blur", "saturate")
    assert torch.equal(corrupt(images, name, 3, seed=1).x, one.x) == (name in fixed)


@pytest.mark.parametrize("name", [*STANDARD, "speckle_noise", "gaussian_blur"])
def test_the_change_grows_with_severity(name):
    # some published settings are not ordered by the mean squared change
    pairs = {
        "elastic_transform": [],
        "glass_blur": [(1, 4), (2, 4), (3, 5)],
        "motion_blur": [(1, 2), (2, 3), (4, 5)],
        "frost": [(1, 2), (1, 5)],
    }.get(name, list(pairwise(range(1, 6))))
    images = photos()
    change = {s: float(((unit(corrupt(images, name, s)) - unit(images)) ** 2).mean()) for s in range(1, 6)}
    assert all(change[a] < change[b] for a, b in pairs), change


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_noise_has_its_published_strength(severity):
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    change = unit(corrupt(flat(128), "gaussian_noise", severity)) - 128 / 255
    assert change.std() == pytest.approx(sigma, rel=0.03)
    assert abs(change.mean()) < 4 * sigma / np.sqrt(change.size)
    # all severities have the same random numbers
    strongest = unit(corrupt(flat(128), "gaussian_noise", 5)) - 128 / 255
    assert np.corrcoef(change.ravel(), strongest.ravel())[0, 1] > 0.99
    photons = (500, 250, 100, 75, 50)[severity - 1]  # counting has the variance of its mean
    assert unit(corrupt(flat(102), "shot_noise", severity)).var() == pytest.approx(0.4 / photons, rel=0.05)
    assert (corrupt(flat(0), "shot_noise", severity).x == 0).all()
    if severity in (1, 5):  # speckle noise is proportional to the value
        sigma = {1: 0.06, 5: 0.2}[severity] * 100 / 255
        assert unit(corrupt(flat(100), "speckle_noise", severity)).std() == pytest.approx(sigma, rel=0.03)
    x = corrupt(flat(128, count=40), "impulse_noise", severity).x
    low, high = float((x == 0).double().mean()), float((x == 255).double().mean())
    assert low + high == pytest.approx((0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1], rel=0.05)
    assert low == pytest.approx(high, rel=0.15)
    assert set(x.unique().tolist()) == {0, 128, 255}


# factor and shift of the saturation, and shift of the value, for severities 1 to 5
HSV = {
    "brightness": [(1, 0, 0.05), (1, 0, 0.1), (1, 0, 0.15), (1, 0, 0.2), (1, 0, 0.3)],
    "saturate": [(0.3, 0, 0), (0.1, 0, 0), (1.5, 0, 0), (2, 0.1, 0), (2.5, 0.2, 0)],
}


@pytest.mark.parametrize("name", HSV)
def test_brightness_and_saturate_change_hsv(name):
    images = photos(2)
    for severity, (factor, shift, by) in enumerate(HSV[name], 1):
        after, before = unit(corrupt(images, name, severity)), unit(images)
        for i, y, x in ((0, 3, 5), (1, 20, 11), (0, 16, 16)):
            h, s, v = colorsys.rgb_to_hsv(*before[i, :, y, x])
            expected = colorsys.hsv_to_rgb(h, min(s * factor + shift, 1), min(v + by, 1))
            np.testing.assert_allclose(after[i, :, y, x], expected, atol=0.5 / 255 + 1e-9)


@pytest.mark.parametrize(("severity", "factor"), list(enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1)))
def test_contrast_scales_the_distance_from_the_mean(severity, factor):
    before = unit(photos())
    mean = before.mean((2, 3), keepdims=True)
    after = unit(corrupt(photos(), "contrast", severity))
    np.testing.assert_allclose(after, mean + factor * (before - mean), atol=0.5 / 255 + 1e-9)


@pytest.mark.parametrize("name", [*FAMILIES["blur"], "elastic_transform", "pixelate"])
@pytest.mark.parametrize("severity", [1, 5])
def test_blurs_and_shifts_leave_a_constant_image_as_it_is(name, severity):
    assert (corrupt(flat(77), name, severity).x.int() - 77).abs().max() <= 1


def test_defocus_at_severity_1_is_a_3x3_gaussian():
    x = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    x[0, 0, 10, 10] = 255
    spot = unit(corrupt(images_of(x), "defocus_blur", 1))[0, 0, 9:12, 9:12]
    weights = np.exp(-np.array([1, 0, 1]) / (2 * 0.4**2))
    np.testing.assert_allclose(spot, np.outer(weights, weights) / weights.sum() ** 2, atol=0.5 / 255 + 1e-9)


def test_motion_blur_smears_in_one_direction_within_its_angles():
    x = torch.zeros(30, 1, 32, 32, dtype=torch.uint8)
    x[:, 0, 16, 16] = 255
    blurred = unit(corrupt(images_of(x), "motion_blur", 5))[:, 0]
    np.testing.assert_allclose(blurred.sum((1, 2)), 1, atol=0.1)
    ys, xs = np.mgrid[:32, :32] - 16
    angle = np.arctan2((blurred * ys).sum((1, 2)), (blurred * xs).sum((1, 2)))
    # a convolution spreads a point over the mirrored kernel
    mirrored = np.abs(np.angle(np.exp(1j * (angle - np.pi))))
    assert (np.minimum(mirrored, np.abs(angle)) < np.deg2rad(46)).all() and mirrored.std() > 0.05


@pytest.mark.parametrize(("size", "step"), [(24, 1), (32, 1), (64, 2)])
@pytest.mark.parametrize("rounds", [1, 2])
def test_glass_blur_moves_pixels_as_far_as_the_published_code(size, step, rounds):
    """That code assigns two views of an array to each other, which copies one of them."""
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    x = np.stack([rows, columns])[None] / 256
    moved = np.round((x - glass_blur(x, np.random.default_rng(1), 1e-3, 1, rounds)) * 256)[0]
    assert not moved[:, : step + 1].any() and not moved[:, :, : step + 1].any()
    inner = moved[:, step + 1 :, step + 1 :]
    assert inner.min() == 0 and inner.max() == step * rounds
    if size == 32 and rounds == 1:
        published, rng = np.moveaxis(x[0], 0, -1).copy(), np.random.default_rng(2)
        for h in range(31, 1, -1):
            for w in range(31, 1, -1):
                dx, dy = rng.integers(-1, 1, 2)
                published[h, w], published[h + dy, w + dx] = published[h + dy, w + dx], published[h, w]
        far = np.round((x[0] - np.moveaxis(published, -1, 0)) * 256)
        assert far.min() == 0 and far.max() == 1 and abs(far.mean() - moved.mean()) < 0.03


def spread_of_published_drops(mean, std, sigma, threshold, edge, mud):
    """Return the share of wet pixels of make_cifar_c.py (hendrycks/robustness) at 32 pixels."""
    rng, shares = np.random.default_rng(5), []
    for _ in range(300):
        layer = ndimage.gaussian_filter(rng.normal(mean, std, (32, 32)), sigma, mode="nearest")
        wet = layer >= threshold
        if mud:
            wet = ndimage.gaussian_filter((layer > threshold).astype(float), edge, mode="nearest") >= 0.8
        shares.append(wet.mean())
    return np.mean(shares)


SPATTER = [
    (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
    (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1),
]  # fmt: skip


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_spatter_wets_the_published_share_at_every_size(severity, size):
    """3, 9, 33, 4 and 7 percent. Water is added, up to half of its colour; mud covers at least four fifths."""
    mud = severity > 3
    expected = spread_of_published_drops(*SPATTER[severity - 1])
    assert expected == pytest.approx((0.03, 0.086, 0.325, 0.0405, 0.069)[severity - 1], rel=0.1)
    count = 40 * 64 // size
    before = torch.full((count, 3, size, size), 255 if mud else 0, dtype=torch.uint8)
    after = corrupt(images_of(before), "spatter", severity).x
    wet = (after != before).any(1)
    assert float(wet.double().mean()) == pytest.approx(expected, rel=0.3)
    peaks = after.amax((2, 3)).max(0).values if not mud else after[:, 0][wet].max()
    limit = torch.tensor([175, 238, 238]) * 0.5 if not mud else torch.tensor(255 - 0.8 * (255 - 63))
    assert (peaks.double() - limit).max() < 1 and (mud or (peaks.double() - limit).min() > -2)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_elastic_bends_as_far_as_published_in_proportion_to_the_side(severity):
    """Mean displacement, in shares of the side, of the published map: points 2/3 of the side apart, a field."""
    alpha, sigma, shift = [
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ][severity - 1]
    rng, published = np.random.default_rng(3), []
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"))
    points = np.array([[26, 26], [26, 6], [6, 6.0]])
    for _ in range(200):
        matrix = np.linalg.solve(np.c_[points + rng.uniform(-shift, shift, (3, 2)), np.ones(3)], points)
        source = np.einsum("yxc,cd->dyx", np.moveaxis(np.r_[grid, np.ones((1, 32, 32))], 0, -1), matrix)
        field = [
            alpha * ndimage.gaussian_filter(rng.uniform(-1, 1, (32, 32)), sigma, truncate=3, mode="reflect")
            for _ in range(2)
        ]
        published.append(np.abs((source - grid + field)[:, 8:24, 8:24]).mean() / 32)
    for size in (32, 64):
        x = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))[None].repeat(60, 0) / size
        parameters = (alpha, sigma, shift)
        moved = elastic_transform(x, np.random.default_rng(0), *parameters) - x
        inner = slice(size // 4, 3 * size // 4)
        assert np.abs(moved[:, :, inner, inner]).mean() == pytest.approx(np.mean(published), rel=0.15)


@pytest.mark.parametrize("decay", [3, 1.75])
def test_each_octave_of_fog_is_weaker_by_the_square_of_its_parameter(decay):
    """The published fractal multiplies by its factor twice."""
    texture, rng = np.zeros((200, 1, 32, 32)), np.random.default_rng(0)
    for k in range(5):
        cells = 2**k + 1
        zoom = ndimage.map_coordinates
        at = np.stack(np.meshgrid(*[np.linspace(0, cells - 1, 32)] * 2, indexing="ij"))
        for image, coarse in zip(texture, rng.uniform(-1, 1, (200, cells, cells)), strict=True):
            image[0] += zoom(coarse, at, order=1, mode="nearest") / decay ** (2 * k)
    texture = (texture - texture.min((2, 3), keepdims=True)) / np.ptp(texture, axis=(2, 3), keepdims=True)
    ours = clouds((200, 1, 32, 32), np.random.default_rng(0), decay)
    np.testing.assert_allclose(ours, texture, atol=1e-6)


def test_snow_is_smeared_over_the_published_length():
    """A flake's light reaches as far as a motion blur of radius 8 and deviation 3 at severity 1."""
    flake = np.zeros((1, 1, 65, 65))
    flake[..., 32, 32] = 1
    streak = smear(flake, np.zeros(1), 8 * 32 / 65, 3 * 32 / 65)[0, 0, 32]
    weights = np.exp(-(np.arange(17) ** 2) / 18)
    np.testing.assert_allclose(np.sort(streak)[::-1][:17], weights / weights.sum(), atol=1e-9)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            weather, "smear", lambda x, angles, *lengths: calls.append(lengths) or smear(x, angles, *lengths)
        )
        corrupt(photos(1), "snow", 1)
    assert calls == [(8, 3)]


def test_weather_and_jpeg_change_brightness_and_contrast_as_they_should():
    before = unit(photos())
    fog, snow, jpeg = (unit(corrupt(photos(), name, 5)) for name in ("fog", "snow", "jpeg_compression"))
    assert fog.std((1, 2, 3)).mean() < 0.9 * before.std((1, 2, 3)).mean()
    assert (fog.max((1, 2, 3)) <= before.max((1, 2, 3)) + 1 / 255).all()
    assert snow.mean() > before.mean() + 0.05
    assert jpeg.mean() == pytest.approx(before.mean(), abs=0.01)


@pytest.mark.parametrize("name", [*STANDARD, "speckle_noise", "gaussian_blur", "spatter"])
def test_grey_images_of_another_size_are_corrupted(name):
    images = images_of(photos(2, 24).x[:, :1].contiguous())
    after = corrupt(images, name, 5)
    assert after.x.shape == (2, 1, 24, 24) and not torch.equal(after.x, images.x)


def test_accuracies_are_averaged_as_published():
    cells = {(n, s): 0.9 - 0.1 * s for n in STANDARD for s in range(1, 6)} | {("fog", s): 0.0 for s in range(1, 6)}
    table = Robustness("generated", 0.9, cells | {("spatter", 1): 0.0})
    assert table.mean == pytest.approx(0.6 * 14 / 15)
    assert table.at(5) == pytest.approx(0.4 * 14 / 15)
    assert table.family("weather") == pytest.approx(0.6 * 3 / 4) and table.of("snow") == pytest.approx(0.6)
    assert table.drop == pytest.approx(1 - table.mean / 0.9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corrupt(photos(1), "fogg", 1), "unknown corruption 'fogg'; did you mean 'fog'"),
        (lambda: corrupt(photos(1), "fog", 6), "severity is 6; give 1 to 5"),
        (lambda: corrupt(flat(1, channels=1), "saturate", 1), "needs colour"),
        (lambda: Robustness("generated", 1.0, {}).mean, "none of these corruptions"),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
