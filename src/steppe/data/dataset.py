"""Labelled images or other tensors, in memory or mapped from a file, and the three parts of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steppe.core.batch import Batch, as_batch
from steppe.data.sources.pixels import RESIZE
from steppe.errors import InputError

Task = Literal[
    "classification", "multi-label", "ordinal", "regression", "segmentation", "language modelling",
    "token classification",
]  # fmt: skip

_CHUNK = 4096  # images that are read at a time to compute the mean


@dataclass(frozen=True)
class Images:
    """N images and their classes ``y`` (N,) int64, or other targets (N, ...).

    Images are ``pixels`` (M, C, H, W) uint8, or ``rows`` of them.
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
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8 or len(self.y) != count:
            raise InputError(
                f"images are {tuple(self.pixels.shape)} {self.pixels.dtype}; give (N, C, H, W) uint8 and N targets"
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
class Tensors:
    """N samples of any kind: inputs ``x`` (N, ...), or several by name, and targets ``y`` (N, ...), or None.

    Targets may have any dtype; without them a model returns its own loss.

    Raises InputError if the tensors have other lengths.
    """

    x: Tensor | Mapping[str, Tensor]
    y: Tensor | None = None

    def __post_init__(self) -> None:
        named = {"x": self.x} if isinstance(self.x, Tensor) else dict(self.x)
        lengths = {k: len(v) if v.ndim else 0 for k, v in named.items()}
        lengths |= {"y": len(self.y) if self.y.ndim else 0} if self.y is not None else {}
        if len(set(lengths.values())) != 1:
            text = ", ".join(f"{k} {n}" for k, n in lengths.items()) or "none"
            raise InputError(f"samples are {text}; give tensors of equal length")

    def __len__(self) -> int:
        return len(self.x if isinstance(self.x, Tensor) else next(iter(self.x.values())))

    def at(self, index: Tensor | slice) -> Tensor | dict[str, Tensor]:
        """Return the inputs at these positions (B, ...), by name if there are several."""
        if isinstance(self.x, Tensor):
            return self.x[index]
        return {name: value[index] for name, value in self.x.items()}

    def part(self, rows: slice) -> Tensors:
        """Return consecutive samples without a copy."""
        return Tensors(self.at(rows), None if self.y is None else self.y[rows])

    def take(self, rows: np.ndarray) -> Tensors:
        """Return copies of the samples of these rows."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        return Tensors(self.at(index), None if self.y is None else self.y[index])


@dataclass(frozen=True, eq=False)
class Fetched:
    """Samples of a map-style data set, fetched by index and joined by ``collate`` when they are needed.

    ``sampler`` orders the indices of an epoch, if it does not shuffle them evenly.
    """

    dataset: Any
    collate: Callable[[Any], Any]
    rows: np.ndarray | None = None
    sampler: Any = None

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)

    def batch(self, index: Tensor) -> Batch:
        """Return the samples at these positions."""
        rows = index.tolist() if self.rows is None else self.rows[index.numpy()].tolist()
        content = as_batch(self.collate([self.dataset[i] for i in rows]))
        return Batch(content.x, content.y, index)

    @cached_property
    def y(self) -> Tensor | None:
        """The targets of the first samples, which show their kind."""
        y = self.batch(torch.arange(min(8, len(self)))).y
        if y is not None and not isinstance(y, Tensor):
            raise InputError(f"the targets are a {type(y).__name__}; give a tensor")
        return y

    @property
    def x(self) -> Any:
        """The inputs of the first samples, which show their kind."""
        return self.batch(torch.arange(min(8, len(self)))).x

    def part(self, rows: slice) -> Fetched:
        """Return consecutive samples."""
        return self.take(np.arange(len(self))[rows])

    def take(self, rows: np.ndarray) -> Fetched:
        """Return the samples of these rows; a part of them is no longer ordered by a sampler."""
        if len(rows) == len(self) and bool((rows == np.arange(len(self))).all()):
            return self
        return Fetched(self.dataset, self.collate, rows if self.rows is None else self.rows[rows])


Samples = Images | Tensors | Fetched


def same_samples(a: Samples, b: Samples) -> bool:
    """Return whether two parts of one data set have the same samples in the same order."""
    if isinstance(a, Fetched) and isinstance(b, Fetched):
        rows, others = (np.arange(len(s)) if s.rows is None else s.rows for s in (a, b))
        return np.array_equal(rows, others)
    if isinstance(a, Images) and isinstance(b, Images):
        if a.file is not None and a.rows is not None and b.rows is not None:
            return torch.equal(a.rows, b.rows)
        return torch.equal(a.x, b.x)
    if isinstance(a, Tensors) and isinstance(b, Tensors):
        inputs, other = (s.x.values() if isinstance(s.x, Mapping) else [s.x] for s in (a, b))
        return all(map(torch.equal, inputs, other))
    return False


@dataclass(frozen=True)
class DataSet:
    """The training, validation and test samples of a run.

    ``skipped`` names unreadable images that were left out; ``note`` says where the test samples come from, what
    was changed in decoding, and what else was left out. ``fingerprint`` is a hash of the samples as they are
    decoded, empty for data sets without files. ``outputs`` is the number of outputs that a network should have:
    the classes, if there are any. ``unit`` is that of the target. Targets of a regression are standardised with
    the training part's ``target_mean`` and ``target_std`` (K,), both empty for targets in their unit.
    ``preparation`` says as plain data how the inputs and targets are made from a table or a text. ``clean_counts``
    are the training samples of each class before labels were replaced, if some were.
    """

    name: str
    train: Samples
    val: Samples
    test: Samples
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    note: str = ""
    fingerprint: str = ""
    task: Task = "classification"
    outputs: int = 0
    unit: str = ""
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    preparation: Mapping[str, Any] = field(default_factory=dict)
    clean_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", self.outputs or len(self.classes) or 1)

    @property
    def inputs(self) -> dict[str, int]:
        """What a network must know of its inputs, as `steppe.models.build` takes it.

        channels and, if they are square, size of images; features of a table (N, F) of floats; vocabulary and
        length of indices (N, T) of tokens.
        """
        if isinstance(self.train, Images):
            return {"channels": self.channels, "size": self.size}
        x = self.train.x
        if not isinstance(x, Tensor):
            return {}
        if x.ndim == 4 and x.dtype.is_floating_point:
            return {"channels": x.shape[1]} | ({"size": x.shape[2]} if x.shape[2] == x.shape[3] else {})
        if x.ndim == 2 and x.dtype.is_floating_point:
            return {"features": x.shape[1]}
        if x.ndim == 2 and self.task in ("language modelling", "token classification"):
            return {"vocabulary": max(self.outputs, int(x.max()) + 1), "length": x.shape[1]}
        return {}

    @property
    def channels(self) -> int:
        """Channels of every image: 1 or 3; defined for images only."""
        assert isinstance(self.train, Images)
        return int(self.train.pixels.shape[1])

    @property
    def size(self) -> int:
        """Side of every image in pixels; defined for images only."""
        assert isinstance(self.train, Images)
        return int(self.train.pixels.shape[2])

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training samples of each class; empty for other targets, and for samples that are not in memory.

        Labels that were replaced by wrong ones count as the right ones.
        """
        if self.clean_counts:
            return self.clean_counts
        y = None if isinstance(self.train, Fetched) else self.train.y
        if self.task != "classification" or y is None or y.ndim != 1 or y.is_floating_point():
            return ()
        return tuple(torch.bincount(y, minlength=len(self.classes)).tolist())

    def with_parts(self, change: Callable[[Samples], Samples], **fields: Any) -> DataSet:
        """Return the data set with each part changed, and other ``fields``."""
        train, val, test = map(change, (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test, **fields)

    def in_unit(self, values: Any) -> Any:
        """Return targets or outputs (B, K) of a regression in the target's unit: target_mean + target_std z."""
        if not self.target_std or not isinstance(values, Tensor):
            return values
        # filled on the device: a copy to a GPU would wait for it
        mean, std = (
            torch.cat([values.new_full((1,), v) for v in stored]) for stored in (self.target_mean, self.target_std)
        )
        return mean + std * values

    def description(self) -> dict[str, Any]:
        """Return the counts of samples and classes, the names and the notes as plain data."""
        counts = self.class_counts
        return {
            **{part: len(getattr(self, part)) for part in ("train", "val", "test")},
            "classes": len(self.classes),
            "names": list(self.classes),
            **self.inputs,
            "task": self.task,
            **({"per_class": list(counts)} if counts and max(counts) >= 2 * min(counts) else {}),
            "note": self.note,
            "skipped": list(self.skipped),
            "fingerprint": self.fingerprint,
            **({"preparation": dict(self.preparation)} if self.preparation else {}),
        }


@dataclass(frozen=True)
class Source:
    """The content of a data set before the split: all training and test samples, and ``val`` if apart.

    Samples that are ``contiguous`` follow each other, as windows of a text do: the last training samples are held
    out for validation, none in between. ``prepare`` makes the data set of the parts, with what only the training
    part may decide: means, deviations, categories, the vocabulary. The other fields are those of `DataSet`.
    """

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    note: str = ""
    val: Samples | None = None
    fingerprint: str = ""
    task: Task = "classification"
    outputs: int = 0
    unit: str = ""
    contiguous: bool = False
    prepare: Callable[[DataSet], DataSet] | None = None


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
