"""Labelled images in memory, and a data set's three parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steppe.errors import InputError


@dataclass(frozen=True)
class Images:
    """Images ``x`` (N, C, H, W) uint8 and their classes ``y`` (N,) int64.

    Raises InputError if shapes or types do not fit.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.x.dtype != torch.uint8 or self.y.shape != (len(self.x),):
            raise InputError(f"images are {tuple(self.x.shape)} {self.x.dtype}; give (N, C, H, W) uint8 and (N,)")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> Images:
        """Return the chosen images, copied."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        return Images(self.x[index], self.y[index])


@dataclass(frozen=True)
class DataSet:
    """A data set ready for a run: what is trained on, validated on and tested on.

    ``skipped`` names unreadable images that were left out; ``note`` says how the test images came about.
    """

    name: str
    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    note: str = ""

    @property
    def channels(self) -> int:
        """Channels of every image: 1 or 3."""
        return int(self.train.x.shape[1])

    @property
    def size(self) -> int:
        """Side of every image in pixels."""
        return int(self.train.x.shape[2])


@dataclass(frozen=True)
class Source:
    """What a data set's files hold, before any split: all training images, all test images."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    note: str = ""


def check_labels(y: np.ndarray, classes: int, where: str) -> None:
    """Raise InputError, naming the file and the value, if a label is not a class index."""
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise InputError(f"{where} has label {int(wrong[0])}; labels go from 0 to {classes - 1}")


def resized(x: np.ndarray, size: int | None) -> np.ndarray:
    """Resize square images (N, C, H, W) uint8 to ``size`` pixels, bilinear with antialiasing."""
    if size is None or x.shape[2] == size:
        return x
    out = np.empty((*x.shape[:2], size, size), np.uint8)
    for i, image in enumerate(x):
        for c, plane in enumerate(image):
            out[i, c] = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
    return out
