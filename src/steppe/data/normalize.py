"""Normalization: from uint8 pixels to the float32 input of a network."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe.data.dataset import Images
from steppe.data.transforms.pil_ops import to_float


@dataclass(frozen=True)
class Normalizer:
    """(x / 255 - mean) / std per channel, plus Gaussian noise of deviation ``noise``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise: float = 0.0
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, kind: str, train: Images, noise: float = 0.0) -> Normalizer:
        """'unit' keeps [0, 1]; 'standard' uses mean and standard deviation of the training images.

        ``noise`` is added to evaluated images by `fixed_noise`.
        """
        channels = train.pixels.shape[1]
        mean, std = ((0.0,) * channels, (1.0,) * channels) if kind == "unit" else train.statistics
        return cls(mean, std, noise)

    def __call__(self, x: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32 network inputs, with fixed noise."""
        clean = self.standardise(to_float(x))
        return clean + self.noise * fixed_noise(x) if self.noise else clean

    @property
    def colour(self) -> tuple[float, ...] | None:
        """The mean colour (C), None if it is black."""
        return self.mean if any(self.mean) else None

    def standardise(self, x: Tensor) -> Tensor:
        """Return images in [0, 1] with mean and deviation applied; ``x`` is changed in place."""
        if not any(self.mean) and set(self.std) == {1.0}:
            return x
        if x.device not in self._constants:  # sent once: the host waits for such a copy
            mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
            self._constants[x.device] = mean, std
        mean, std = self._constants[x.device]
        return x.sub_(mean).div_(std)

    def __reduce__(self) -> Any:
        return Normalizer, (self.mean, self.std, self.noise)


def fixed_noise(x: Tensor) -> Tensor:
    """Return unit normal noise for each image of ``x`` (B, C, H, W) uint8, always the same for the same image.

    It does not depend on the batch, the process or the epoch (OKDPH's supplement, table 4, adds noise to all
    images; Zhang et al., CVPR 2023, arXiv:2303.14666).
    """
    noise = [
        np.random.default_rng(zlib.crc32(image.numpy().tobytes())).standard_normal(image.shape, np.float32)
        for image in x.contiguous()
    ]
    return torch.from_numpy(np.stack(noise)) if noise else torch.empty(x.shape)
