"""Corruptions by noise, blur and digital processing.

All take images (N, C, H, W) as float64 in [0, 1] and return them before clipping. Lengths are in pixels of images
of side 32 and scale with the side. The sequence of random numbers does not depend on the severity.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

_SIDE = 32


def gaussian_noise(x: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Add normal noise."""
    return x + sigma * rng.standard_normal(x.shape)


def shot_noise(x: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """Replace values by photon counts: Poisson with mean ``photons`` for white."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Set this share of all values to 0 or 1 with equal probability."""
    hit, high = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(hit, high.astype(float), x)


def speckle_noise(x: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Add normal noise proportional to the value."""
    return x + sigma * x * rng.standard_normal(x.shape)


def gaussian_blur(x: np.ndarray, rng: np.random.Generator | None, sigma: float) -> np.ndarray:
    """Blur with a Gaussian; edges are continued."""
    scaled = sigma * x.shape[-1] / _SIDE
    blurred: np.ndarray = ndimage.gaussian_filter(x, (0, 0, scaled, scaled), mode="nearest")
    return blurred


def defocus_blur(x: np.ndarray, rng: np.random.Generator, radius: float, edge: float) -> np.ndarray:
    """Blur with a disc whose edge is smoothed by a 3x3 Gaussian of deviation ``edge``."""
    scaled = radius * x.shape[-1] / _SIDE
    reach = int(np.ceil(scaled)) + 1
    offsets = np.arange(-reach, reach + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= scaled**2).astype(float)
    gaussian = np.exp(-(np.arange(-1, 2) ** 2) / (2 * edge**2))
    kernel = ndimage.convolve(disc, np.outer(gaussian, gaussian) / gaussian.sum() ** 2, mode="constant")
    return _convolve(x, kernel / kernel.sum())


def glass_blur(x: np.ndarray, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> np.ndarray:
    """Replace each pixel by a random one up to ``reach`` above and left of it; blur before and after.

    The published code means to swap both, but its assignment copies, from the lower right to the upper left: in a
    round no pixel moves further than ``reach``, and the first ``reach`` + 1 rows and columns do not change.
    """
    count, channels, h, w = x.shape
    out = gaussian_blur(x, None, sigma)
    scaled = max(1, round(reach * w / _SIDE))
    images, planes = np.arange(count)[:, None, None, None], np.arange(channels)[:, None, None]
    rows, columns = np.arange(h)[:, None], np.arange(w)
    moves = (rows > scaled) & (columns > scaled)
    for _ in range(rounds):
        down, right = rng.integers(0, scaled + 1, (2, count, 1, h, w)) * moves
        out = out[images, planes, rows - down, columns - right]
    return gaussian_blur(out, None, sigma)


def motion_blur(x: np.ndarray, rng: np.random.Generator, radius: float, sigma: float) -> np.ndarray:
    """Smear each image along a line at a random angle from -45 to 45 degrees."""
    return smear(x, np.deg2rad(rng.uniform(-45, 45, len(x))), radius, sigma)


def smear(x: np.ndarray, angles: np.ndarray, radius: float, sigma: float) -> np.ndarray:
    """Smear each image in one direction along a line at its angle, with the weights of half a Gaussian."""
    scale = x.shape[-1] / _SIDE
    reach = max(1, round(2 * radius * scale))
    weights = np.exp(-(np.arange(reach + 1) ** 2) / (2 * (sigma * scale) ** 2))
    out = np.empty_like(x)
    for i, angle in enumerate(angles):
        kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
        for t, weight in enumerate(weights / weights.sum()):
            _add_between_cells(kernel, reach + t * np.sin(angle), reach + t * np.cos(angle), weight)
        out[i] = _convolve(x[i : i + 1], kernel)[0]
    return out


def zoom_blur(x: np.ndarray, rng: np.random.Generator, largest: float) -> np.ndarray:
    """Average the image and its enlargements up to ``largest``, in steps of 0.01."""
    factors = [1 + 0.01 * i for i in range(round((largest - 1) * 100) + 1)]
    total = x.copy()
    for factor in factors:
        total += enlarge(x, factor)
    return total / (len(factors) + 1)


def enlarge(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge about the centre, bilinearly, and keep the size."""
    if factor == 1:
        return x
    middle = (np.array(x.shape[-2:]) - 1) / 2
    offset = middle - middle / factor
    matrix = np.array([1, 1, 1 / factor, 1 / factor])
    out: np.ndarray = ndimage.affine_transform(x, matrix, (0, 0, *offset), order=1, mode="nearest")
    return out


def contrast(x: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Scale the distance of every value from its channel's mean by ``factor``."""
    mean = x.mean((2, 3), keepdims=True)
    scaled: np.ndarray = mean + factor * (x - mean)
    return scaled


def elastic_transform(
    x: np.ndarray, rng: np.random.Generator, alpha: float, sigma: float, shift: float
) -> np.ndarray:
    """Apply a random affine map, which moves three points by up to ``shift``, and a smooth random field.

    The points are corners of a square of two thirds of the side around the centre.
    """
    count, channels, h, w = x.shape
    scale = w / _SIDE
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"))
    points = np.array([h // 2, w // 2]) + min(h, w) // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    out = np.empty_like(x)
    for i in range(count):
        moved = points + shift * scale * rng.uniform(-1, 1, (3, 2))
        field = rng.uniform(-1, 1, (2, h, w))
        linear = np.linalg.lstsq(np.c_[moved, np.ones(3)], points, rcond=None)[0]
        source = np.einsum("yxc,cd->dyx", np.moveaxis(np.r_[grid, np.ones((1, h, w))], 0, -1), linear)
        if alpha:
            smooth = ndimage.gaussian_filter(field, (0, sigma * scale, sigma * scale), mode="reflect")
            source = source + alpha * scale * smooth * (
                blurred_deviation(sigma) / blurred_deviation(sigma * scale)
            )
        for c in range(channels):
            out[i, c] = ndimage.map_coordinates(x[i, c], source, order=1, mode="reflect")
    return out


def pixelate(x: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Shrink to this share of the size and enlarge again, with box filters."""
    h, w = x.shape[2:]
    small = max(1, int(w * factor)), max(1, int(h * factor))
    out = np.empty(x.shape)
    for plane, image in zip(out.reshape(-1, h, w), x.reshape(-1, h, w), strict=True):
        shrunk = Image.fromarray(image.astype(np.float32)).resize(small, Image.Resampling.BOX)
        plane[:] = np.asarray(shrunk.resize((w, h), Image.Resampling.BOX))
    return out


def jpeg_compression(x: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """Save as JPEG of this quality and read it again."""
    out = np.empty_like(x)
    for i, image in enumerate(to_uint8(x)):
        picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        read = np.asarray(Image.open(file)) / 255
        out[i] = read[None] if read.ndim == 2 else np.moveaxis(read, -1, 0)
    return out


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Return values in [0, 1] as uint8, clipped and rounded."""
    rounded: np.ndarray = (np.clip(x, 0, 1) * 255).round().astype(np.uint8)
    return rounded


def blurred_deviation(sigma: float) -> float:
    """Return the standard deviation of unit white noise after a Gaussian blur of two dimensions."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * max(sigma, 1e-6) ** 2))
    return float((weights**2).sum() / weights.sum() ** 2)


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    blurred: np.ndarray = ndimage.convolve(x, kernel[None, None], mode="nearest")
    return blurred


def _add_between_cells(kernel: np.ndarray, y: float, x: float, weight: float) -> None:
    """Add a weight at a fractional position, shared by the four cells around it."""
    i, j = int(np.floor(y)), int(np.floor(x))
    dy, dx = y - i, x - j
    for a, wa in ((i, 1 - dy), (i + 1, dy)):
        for b, wb in ((j, 1 - dx), (j + 1, dx)):
            if wa * wb > 0:
                kernel[min(a, len(kernel) - 1), min(b, len(kernel) - 1)] += weight * wa * wb
