"""Robustness to common corruptions: the published files if they are given, else images corrupted here.

The 15 corruptions at 5 severities of Hendrycks and Dietterich (ICLR 2019), and their 4 spare ones, with the
severities of the CIFAR sets. What is generated here follows the published parameters in an implementation of its
own, with textures of its own for frost, clouds and snow: it compares networks of one study with each other, and
never with numbers published for CIFAR-10-C or CIFAR-100-C.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.data.dataset import Images
from steppe.diagnostics.corruptions import digital, weather
from steppe.errors import InputError, unknown

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
SPARE = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
STANDARD = tuple(name for family in FAMILIES.values() for name in family)
SEVERITIES = (1, 2, 3, 4, 5)

Corrupter = Callable[..., np.ndarray]

_LIST: dict[str, tuple[Corrupter, tuple[tuple[Any, ...], ...]]] = {
    "gaussian_noise": (digital.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (digital.shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": (digital.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": (digital.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (digital.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (digital.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (digital.zoom_blur, ((1.05,), (1.10,), (1.15,), (1.20,), (1.25,))),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (weather.brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (digital.contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": (
        digital.elastic_transform,
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    ),
    "pixelate": (digital.pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": (digital.jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
    "speckle_noise": (digital.speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": (digital.gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,))),
    "spatter": (
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": (weather.saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}


def corrupt(images: Images, name: str, severity: int, seed: int = 0) -> Images:
    """Return the images with one corruption, equal for equal images and seed; noise is alike at all severities.

    Lengths (of blurs, say) are for 32 pixels and scale with the side. The severities are the published order,
    which is not everywhere one of strength (saturate lowers, then raises; elastic_transform bends ever more
    locally).

    Raises InputError for an unknown name, a severity other than 1 to 5, or ``saturate`` on grey images.
    """
    if name not in _LIST:
        raise unknown("corruption", name, _LIST)
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity}; give 1 to 5")
    if name == "saturate" and images.x.shape[1] == 1:
        raise InputError("corruption 'saturate' needs colour; these images are grey")
    change, settings = _LIST[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    out = change(images.x.numpy() / 255.0, rng, *settings[severity - 1])
    x = torch.from_numpy((np.clip(out, 0, 1) * 255).round().astype(np.uint8))
    return Images(x, images.y)


def read_official(folder: Path, name: str, severity: int, count: int | None = None) -> Images:
    """Return one corruption of CIFAR-10-C or CIFAR-100-C from its published ``.npy`` files.

    ``NAME.npy`` is (50000, 32, 32, 3) uint8, severity s in rows (s - 1) 10000 to s 10000, the test images in their
    order; ``labels.npy`` repeats their classes. ``count`` takes that many, evenly spaced.

    Raises InputError if a file is missing or of another shape, or the severity is not 1 to 5.
    """
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity}; give 1 to 5")
    x, y = _load(folder / f"{name}.npy"), _load(folder / "labels.npy")
    if x.ndim != 4 or x.shape[3] not in (1, 3) or x.dtype != np.uint8 or y.shape != (len(x),) or len(x) % 5:
        raise InputError(f"{folder}/{name}.npy is {x.shape} and labels.npy {y.shape}; give the published files")
    each = len(x) // 5
    wanted = each if count is None else min(count, each)
    rows = (severity - 1) * each + np.arange(wanted) * each // wanted
    chosen = np.ascontiguousarray(np.moveaxis(x[rows], -1, 1))
    return Images(torch.from_numpy(chosen), torch.from_numpy(y[rows].astype(np.int64)))


@dataclass(frozen=True)
class Robustness:
    """Accuracy of one network under corruption, as fractions.

    Attributes:
        origin: 'generated', or the folder of the published files.
        clean: Accuracy on the uncorrupted images.
        cells: Accuracy by corruption and severity.
    """

    origin: str
    clean: float
    cells: Mapping[tuple[str, int], float]

    @property
    def mean(self) -> float:
        """Return the unweighted mean over the standard corruptions at all severities; spare ones do not count."""
        return self._over(STANDARD, SEVERITIES)

    @property
    def drop(self) -> float:
        """Return what is lost of the clean accuracy, as a share of it."""
        return 1 - self.mean / self.clean if self.clean else 0.0

    def of(self, name: str) -> float:
        """Return the mean over severities of one corruption."""
        return self._over((name,), SEVERITIES)

    def family(self, name: str) -> float:
        """Return the mean over the corruptions of a family: noise, blur, weather or digital."""
        return self._over(FAMILIES[name], SEVERITIES)

    def at(self, severity: int) -> float:
        """Return the mean over the standard corruptions at one severity (RWP table 3 is at 5)."""
        return self._over(STANDARD, (severity,))

    def _over(self, names: Iterable[str], severities: Iterable[int]) -> float:
        wanted = [(n, s) for n in names for s in severities]
        found = [self.cells[cell] for cell in wanted if cell in self.cells]
        if not found:
            raise InputError("none of these corruptions was measured")
        return sum(found) / len(found)


def robustness(
    classify: Callable[[Images], float],
    images: Images,
    *,
    official: Path | None = None,
    names: Iterable[str] = STANDARD,
    severities: Iterable[int] = SEVERITIES,
    seed: int = 0,
) -> Robustness:
    """Return a network's accuracy under each corruption.

    Args:
        classify: Returns the accuracy on images, as a fraction.
        images: Uncorrupted images; corrupted here unless ``official`` is given.
        official: Folder of the published files; as many images of each are taken as there are in ``images``.
        names: Corruptions.
        severities: Severities.
        seed: Of the corruption.

    Raises what `corrupt` and `read_official` raise.
    """
    cells = {
        (name, severity): classify(
            corrupt(images, name, severity, seed)
            if official is None
            else read_official(official, name, severity, len(images))
        )
        for name in names
        for severity in severities
    }
    return Robustness("generated" if official is None else str(official), classify(images), cells)


def _load(path: Path) -> np.ndarray:
    try:
        held: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no {path}; give the folder of CIFAR-10-C or CIFAR-100-C") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; download it again") from None
    return held
