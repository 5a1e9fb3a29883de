"""Less or worse data, as OKDPH's supplement has it (Zhang et al., CVPR 2023, arXiv:2303.14666, table 4)."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def published(y: np.ndarray, share: float) -> np.ndarray:
    """Return positions of ``share`` of each class, chosen as the lists of OKDPH's code were: with repetitions.

    Classes come in the order in which they first appear in ``y`` (N,); one RandomState(42) draws for all of them.
    Tenth and hundredth parts of CIFAR come out as published (tianlizhang/OKDPH @ a562089).
    """
    rng = np.random.RandomState(42)
    _, first = np.unique(y, return_index=True)
    places = [np.flatnonzero(y == y[i]) for i in np.sort(first)]
    return np.concatenate([rng.choice(own, round(len(own) * share)) for own in places])


def fixed_noise(x: Tensor) -> Tensor:
    """Return unit normal noise for each image of ``x`` (B, C, H, W) uint8, always the same for the same image.

    Its seed is the image itself, so neither batches nor processes matter, and no epoch is luckier than another.
    """
    drawn = [
        np.random.default_rng(zlib.crc32(image.numpy().tobytes())).standard_normal(image.shape, np.float32)
        for image in x.contiguous()
    ]
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(x.shape)
