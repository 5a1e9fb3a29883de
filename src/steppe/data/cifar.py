"""CIFAR-10 and CIFAR-100 in their published formats, read without trusting the pickles they come as."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.config import Data
from steppe.data import cache
from steppe.data.images import Images, Source, check_labels, resized
from steppe.errors import InputError

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_FILES = {
    "cifar10": (tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", b"labels"),
    "cifar100": (("train",), "test", "meta", b"fine_labels"),
}
_COUNT = {"cifar10": 10, "cifar100": 100}


class _Plain(pickle.Unpickler):
    """Unpickles arrays, numbers and text; refuses to import anything else, so a file cannot run code."""

    def __init__(self, content: bytes, name: str):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(f"{self.name} asks to run {module}.{name}, which image data never does; refused")
        return super().find_class(module, name)


def load(name: str, path: str, options: Data) -> Source:
    """Return CIFAR-10 or CIFAR-100 from a folder or archive in the python or binary format, or download it.

    ``path`` empty looks in STEPPE_DATA, then in the cache's data folder; 'download' fetches through
    torchvision into the latter.

    Raises InputError if the files are missing or damaged, or hold anything but images and labels.
    """
    home = Path(os.environ.get("STEPPE_DATA") or cache.folder() / "data")
    if path == "download":
        _download(name, home)
        path = ""
    root = Path(path) if path else home
    if not root.exists():
        raise InputError(
            f"{name} is not in {root}; give {name}:PATH (a folder or archive of the published files) "
            f"or {name}:download"
        )
    train_names, test_name, _, labels = _FILES[name]
    train = [_part(root, n, name, labels) for n in train_names]
    test = _part(root, test_name, name, labels)
    train_x, train_y = (np.concatenate([part[k] for part in train]) for k in (0, 1))
    return Source(
        Images(torch.from_numpy(resized(train_x, options.size)), torch.from_numpy(train_y)),
        Images(torch.from_numpy(resized(test[0], options.size)), torch.from_numpy(test[1])),
        tuple(str(i) for i in range(_COUNT[name])),
        note="test images: the published test set",
    )


def _part(root: Path, part: str, name: str, labels: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of the data set: (x (N, 3, 32, 32) uint8, y (N,) int64)."""
    file, content = _content(root, part, name)
    if file.endswith(".bin"):
        header = 1 if name == "cifar10" else 2
        flat = np.frombuffer(content, np.uint8)
        if len(flat) % (header + 3072):
            raise InputError(f"{file} is damaged (its length is no whole number of images); get it again")
        rows = flat.reshape(-1, header + 3072)
        x, y = rows[:, header:], rows[:, header - 1].astype(np.int64)
    else:
        try:
            held = _Plain(content, file).load()
            x, y = np.asarray(held[b"data"], np.uint8), np.asarray(held[labels], np.int64)
        except InputError:
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise InputError(f"{file} is damaged ({type(error).__name__}: {error}); get it again") from None
    if x.ndim != 2 or x.shape[1] != 3072 or len(x) != len(y):
        raise InputError(f"{file} does not hold 32x32 colour images with labels; get it again")
    check_labels(y, _COUNT[name], file)
    return np.ascontiguousarray(x.reshape(-1, 3, 32, 32)), y


def _content(root: Path, part: str, name: str) -> tuple[str, bytes]:
    """Find a file by its name, wherever it stands in the folder or archive."""
    wanted = (part, part + ".bin")
    if root.is_file():
        try:
            with tarfile.open(root) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).name in wanted:
                        file = archive.extractfile(member)
                        return member.name, file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"archive {root} cannot be read ({error}); get it again") from None
    else:
        inner = "cifar-10-*" if name == "cifar10" else "cifar-100-*"
        for folder in (root, *sorted(root.glob(inner))):
            for file_name in wanted:
                if (folder / file_name).is_file():
                    return str(folder / file_name), (folder / file_name).read_bytes()
    raise InputError(
        f"{root} has no {part}; give the folder or archive of {name} as published, or {name}:download"
    )


def _download(name: str, home: Path) -> None:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError):  # a torchvision built for another torch raises RuntimeError
        raise InputError("downloading needs torchvision: pip install 'steppe[vision]'") from None
    (datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100)(str(home), download=True)
