"""Labelled images, in memory or mapped from a file, and the three parts of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steppe.data.sources.pixels import RESIZE
from steppe.errors import InputError

_CHUNK = 4096  # images that are read at a time to compute the mean


@dataclass(frozen=True)
class Images:
    """N images and their classes ``y`` (N,) int64; images are ``pixels`` (M, C, H, W) uint8, or ``rows`` of them.

    ``file`` is the file that the pixels are mapped from, if any: all processes share them, they are read when
    needed, and a selection of images is only a list of rows.

    Raises InputError if shapes or types do not fit.
    """

    pixels: Tensor
    y: Tensor
    rows: Tensor | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        count = len(self.pixels) if self.rows is None else len(self.rows)
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8 or self.y.shape != (count,):
            raise InputError(
                f"images are {tuple(self.pixels.shape)} {self.pixels.dtype}; give (N, C, H, W) uint8 and (N,)"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> Tensor:
        """All images (N, C, H, W) uint8; copied if there are ``rows``."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def at(self, index: Tensor | slice) -> Tensor:
        """Return the images at these positions (B, C, H, W) without reading others."""
        rows = index if self.rows is None else self.rows[index]
        # index_select copies whole rows, indexing single bytes
        return self.pixels[rows] if isinstance(rows, slice) else self.pixels.index_select(0, rows)

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of x / 255; all images are read once."""
        counts = torch.zeros(self.pixels.shape[1], 256, dtype=torch.long)
        for start in range(0, len(self), _CHUNK):
            for c, values in enumerate(self.at(slice(start, start + _CHUNK)).transpose(0, 1)):
                counts[c] += torch.bincount(values.reshape(-1), minlength=256)
        share = counts.double() / counts.sum(1, keepdim=True)
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ value
        std = ((share * (value - mean[:, None]) ** 2).sum(1)).sqrt().clamp(min=1e-6)
        return tuple(mean.tolist()), tuple(std.tolist())

    @cached_property
    def copies(self) -> dict[torch.device, Images | None]:
        """Copies on GPUs, None where they do not fit; see `steppe.data._device_memory.resident`."""
        return {}

    def part(self, rows: slice) -> Images:
        """Return consecutive images without a copy."""
        if rows.indices(len(self)) == (0, len(self), 1):
            return self
        if self.rows is None:
            return Images(self.pixels[rows], self.y[rows])
        return Images(self.pixels, self.y[rows], self.rows[rows], self.file)

    def take(self, rows: np.ndarray) -> Images:
        """Return the images of these rows, copied unless they are mapped from a file."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        if self.file is None:
            return Images(self.at(index), self.y[index])
        return Images(self.pixels, self.y[index], index if self.rows is None else self.rows[index], self.file)

    @classmethod
    def mapped(cls, file: Path, y: Tensor, rows: Tensor | None = None) -> Images:
        """Map the images of a .npy file; raises OSError or ValueError if it is damaged."""
        # copy-on-write: torch needs writable memory, and a page is copied only when it is written
        return cls(torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False)), y, rows, file)

    def __reduce__(self) -> Any:
        # another process maps the file instead of receiving a copy
        state = {name: vars(self)[name] for name in ("statistics",) if name in vars(self)}
        if self.file is not None:
            return Images.mapped, (self.file, self.y, self.rows), state
        return Images, (self.pixels, self.y, self.rows), state


@dataclass(frozen=True)
class DataSet:
    """The training, validation and test images of a run.

    ``skipped`` names unreadable images that were left out; ``note`` says where the test images come from, what was
    changed in decoding, and what else was left out. ``fingerprint`` is a hash of the images as they are decoded,
    empty for data sets without files.
    """

    name: str
    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    note: str = ""
    fingerprint: str = ""

    @property
    def channels(self) -> int:
        """Channels of every image: 1 or 3."""
        return int(self.train.pixels.shape[1])

    @property
    def size(self) -> int:
        """Side of every image in pixels."""
        return int(self.train.pixels.shape[2])

    def description(self) -> dict[str, Any]:
        """Return the counts of images and classes, the names and the notes as plain data."""
        return {
            **{part: len(getattr(self, part)) for part in ("train", "val", "test")},
            "classes": len(self.classes),
            "names": list(self.classes),
            "channels": self.channels,
            "size": self.size,
            "note": self.note,
            "skipped": list(self.skipped),
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class Source:
    """The content of a data set's files before the split: all training and test images, and ``val`` if apart."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    note: str = ""
    val: Images | None = None
    fingerprint: str = ""


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
            out[i, c] = np.asarray(Image.fromarray(plane).resize((size, size), RESIZE))
    return out
