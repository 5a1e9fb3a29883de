"""Common corruptions: the 15 of Hendrycks and Dietterich (ICLR 2019) and their 4 extra ones, at 5 severities.

`corrupt` generates them with the parameters of the CIFAR sets (hendrycks/robustness, make_cifar_c.py) but code of
our own; frost and fog also have textures and spatter a shading of our own. Accuracies on generated images compare
networks of one study with each other, but not with numbers published for CIFAR-10-C or CIFAR-100-C.
`published_sets` reads the published files.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
STANDARD = tuple(name for family in FAMILIES.values() for name in family)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)

# each corruption with its parameters at severities 1 to 5
_CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], tuple[tuple[Any, ...], ...]]] = {
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
    """Return the images with one corruption, equal for equal images and seed.

    Random numbers are the same at all severities. Lengths, of blurs for example, are for 32 pixels and scale with
    the side. The severities are in the published order, which is not everywhere one of strength (elastic_transform
    bends ever more locally, saturate first lowers and then raises).

    Raises InputError for an unknown name, a severity other than 1 to 5, or ``saturate`` on grey images.
    """
    if name not in _CORRUPTIONS:
        raise unknown("corruption", name, _CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity}; give 1 to 5")
    if name == "saturate" and images.x.shape[1] == 1:
        raise InputError("corruption 'saturate' needs colour; these images are grey")
    function, parameters = _CORRUPTIONS[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    out = function(images.x.numpy() / 255.0, rng, *parameters[severity - 1])
    return Images(torch.from_numpy(digital.to_uint8(out)), images.y)


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
        """Return the unweighted mean over the standard corruptions at all severities."""
        return self._mean_over(STANDARD, SEVERITIES)

    @property
    def drop(self) -> float:
        """Return the accuracy lost between clean and corrupted images, as a fraction of the clean accuracy."""
        return 1 - self.mean / self.clean if self.clean else 0.0

    def of(self, name: str) -> float:
        """Return the mean over severities of one corruption."""
        return self._mean_over((name,), SEVERITIES)

    def family(self, name: str) -> float:
        """Return the mean over the corruptions of a family: noise, blur, weather or digital."""
        return self._mean_over(FAMILIES[name], SEVERITIES)

    def at(self, severity: int) -> float:
        """Return the mean over the standard corruptions at one severity (RWP table 3 is at 5)."""
        return self._mean_over(STANDARD, (severity,))

    def _mean_over(self, names: Iterable[str], severities: Iterable[int]) -> float:
        keys = [(n, s) for n in names for s in severities]
        values = [self.cells[key] for key in keys if key in self.cells]
        if not values:
            raise InputError("none of these corruptions was measured")
        return sum(values) / len(values)
