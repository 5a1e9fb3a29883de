"""Corruptions by weather, light and dirt; conventions as in `steppe.diagnostics.corruptions.digital`.

The published sets use photographs of frost and ImageMagick's motion blur. Here frost and fog are textures of our
own with the published parameters. Drops have the published share; snow, brightness and saturate follow their
formulas.
"""

import numpy as np
from scipy import ndimage

from steppe.diagnostics.corruptions.digital import blurred_deviation, enlarge, smear

_WATER, _MUD = (175, 238, 238), (63, 42, 20)


def brightness(x: np.ndarray, rng: np.random.Generator, by: float) -> np.ndarray:
    """Add to the value in HSV and keep hue and saturation; black becomes grey."""
    value = x.max(1, keepdims=True)
    raised = np.clip(value + by, 0, 1)
    brighter: np.ndarray = np.where(value > 0, x * (raised / np.where(value > 0, value, 1)), raised)
    return brighter


def saturate(x: np.ndarray, rng: np.random.Generator, factor: float, by: float) -> np.ndarray:
    """Scale and shift the saturation in HSV and keep hue and value; grey has no hue and does not change."""
    value, lowest = x.max(1, keepdims=True), x.min(1, keepdims=True)
    chroma = value - lowest
    saturation = chroma / np.where(value > 0, value, 1)
    target = np.clip(saturation * factor + by, 0, 1)
    # at equal hue, every channel's distance from the value is proportional to the saturation
    return np.where(chroma > 0, value - (value - x) * target / np.where(saturation > 0, saturation, 1), x)


def fog(x: np.ndarray, rng: np.random.Generator, amount: float, decay: float) -> np.ndarray:
    """Add clouds and scale to each image's former maximum; clouds are ours."""
    highest = x.max((1, 2, 3), keepdims=True)
    scaled: np.ndarray = (x + amount * clouds(x.shape, rng, decay)) * highest / (highest + amount)
    return scaled


def frost(x: np.ndarray, rng: np.random.Generator, image: float, ice: float) -> np.ndarray:
    """Blend with ice of each image's own: bright, bluish ridges of fine clouds; this texture is ours."""
    ridges = 1 - 2 * np.abs(clouds(x.shape, rng, 1.5**0.5) - 0.5)
    tint = np.array([0.82, 0.92, 1.0]) if x.shape[1] == 3 else np.ones(1)
    return image * x + ice * np.clip(1.6 * ridges - 0.4, 0, 1) * tint[:, None, None]


def snow(x: np.ndarray, rng: np.random.Generator, *parameters: float) -> np.ndarray:
    """Whiten the image and add flakes, smeared along a random angle, from both sides."""
    mean, std, size, threshold, radius, sigma, mix = parameters
    flakes = mean + std * rng.standard_normal((len(x), 1, *x.shape[2:]))
    angles = np.deg2rad(rng.uniform(45, 135, len(x)))
    flakes = enlarge(flakes, size)
    flakes = smear(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1), angles, radius, sigma)
    pale = np.maximum(x, 1.5 * _grey(x) + 0.5)
    snowy: np.ndarray = mix * x + (1 - mix) * pale + flakes + flakes[:, :, ::-1, ::-1]
    return snowy


def spatter(x: np.ndarray, rng: np.random.Generator, *parameters: float) -> np.ndarray:
    """Add drops of water of up to this ``strength``, or cover the image with mud; the drops' shading is ours.

    Drops are where blurred noise exceeds the threshold. Mud has smooth edges of deviation ``strength``, cut off
    below 0.8. Drops of images below 32 pixels are those of 32 pixels, sampled.
    """
    mean, std, sigma, threshold, strength, mud = parameters
    h, w = x.shape[2:]
    grid = max(h, 32), max(w, 32)
    scale = grid[1] / 32
    noise = std * rng.standard_normal((len(x), 1, *grid))
    drops = mean + ndimage.gaussian_filter(noise, (0, 0, sigma * scale, sigma * scale), mode="nearest") * (
        blurred_deviation(sigma) / blurred_deviation(sigma * scale)  # the share of drops is that at 32 pixels
    )
    if mud:
        edge = strength * scale
        cover = ndimage.gaussian_filter((drops > threshold).astype(float), (0, 0, edge, edge), mode="nearest")
        cover[cover < 0.8] = 0
    else:
        height = np.maximum(drops - threshold, 0)
        cover = strength * height / np.maximum(height.max((2, 3), keepdims=True), 1e-12)
    cover = cover[:, :, np.arange(h)[:, None] * grid[0] // h, np.arange(w) * grid[1] // w]
    colour = np.array(_MUD if mud else _WATER) / 255
    if x.shape[1] == 1:
        colour = colour.mean(keepdims=True)
    covered: np.ndarray = x * (1 - cover if mud else 1) + cover * colour[:, None, None]
    return covered


def clouds(shape: tuple[int, ...], rng: np.random.Generator, decay: float) -> np.ndarray:
    """Return a random texture per image (N, 1, H, W) in [0, 1]: octaves of noise, each weaker by ``decay``².

    The published fractal divides a factor by ``decay`` in every octave, and multiplies by it twice.
    """
    count, _, h, w = shape
    octaves = int(np.ceil(np.log2(max(h, w))))
    total = np.zeros((count, 1, h, w))
    for k in range(octaves):
        cells = 2**k + 1
        coarse = rng.uniform(-1, 1, (count, cells, cells))
        rows, columns = (np.linspace(0, cells - 1, n) for n in (h, w))
        i, j = (np.minimum(p.astype(int), cells - 2) for p in (rows, columns))
        u, v = (rows - i)[:, None], (columns - j)[None, :]
        upper = coarse[:, i][:, :, j] * (1 - v) + coarse[:, i][:, :, j + 1] * v
        lower = coarse[:, i + 1][:, :, j] * (1 - v) + coarse[:, i + 1][:, :, j + 1] * v
        total[:, 0] += (upper * (1 - u) + lower * u) / decay ** (2 * k)
    total -= total.min((2, 3), keepdims=True)
    texture: np.ndarray = total / np.maximum(total.max((2, 3), keepdims=True), 1e-12)
    return texture


def _grey(x: np.ndarray) -> np.ndarray:
    if x.shape[1] == 1:
        return x
    return np.tensordot(x, np.array([0.299, 0.587, 0.114]), axes=(1, 0))[:, None]
