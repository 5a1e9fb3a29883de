"""CIFAR-10 and CIFAR-100 in their published formats; their pickles cannot run code."""

import io
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source, check_labels, resized
from steppe.data.sources import cache
from steppe.errors import InputError

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_FILES = {"cifar10": (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), "cifar100": ("train", "test")}
_INNER = {"cifar10": "cifar-10-*", "cifar100": "cifar-100-*"}
_LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
_COUNT = {"cifar10": 10, "cifar100": 100}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, numbers and text, and refuses to import anything else."""

    def __init__(self, content: bytes, name: str):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(f"{self.name} wants to run {module}.{name}; refused, as image data never needs that")
        return super().find_class(module, name)


def load(name: str, path: str, options: Data) -> Source:
    """Return CIFAR-10 or CIFAR-100 from a folder or archive in the python or binary format, or download it.

    An empty ``path`` means the folder STEPPE_DATA, by default ``data`` in the cache; 'download' fetches the files
    into it through torchvision.

    Raises InputError if the files are missing or damaged, or hold anything but images and labels.
    """
    if path in ("", "download"):
        root = Path(os.environ.get("STEPPE_DATA") or cache.folder() / "data")
    else:
        root = cache.expanded(path)
    if path == "download":
        _download(name, root)
    if not root.exists():
        raise InputError(
            f"{name} is not in {root}; give {name}:PATH (a folder or archive of the published files) "
            f"or {name}:download"
        )
    key = [name, str(root.resolve()), _fingerprint(root, name), options.size]
    return cache.cached(key, lambda: _read(root, name, options))


def _read(root: Path, name: str, options: Data) -> Source:
    parts = [_read_part(file, content, name) for file, content in _contents(root, name)]
    test = parts.pop()
    train_x, train_y = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return Source(
        Images(torch.from_numpy(resized(train_x, options.size)), torch.from_numpy(train_y)),
        Images(torch.from_numpy(resized(test[0], options.size)), torch.from_numpy(test[1])),
        tuple(str(i) for i in range(_COUNT[name])),
        note="test images: the published test set",
    )


def _read_part(file: str, content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of the data set: (x (N, 3, 32, 32) uint8, y (N,) int64)."""
    if file.endswith(".bin"):
        header = 1 if name == "cifar10" else 2
        flat = np.frombuffer(content, np.uint8)
        if len(flat) % (header + 3072):
            raise InputError(f"{file} is damaged (its length is no whole number of images); get it again")
        rows = flat.reshape(-1, header + 3072)
        x, y = rows[:, header:], rows[:, header - 1].astype(np.int64)
    else:
        try:
            values = _ArrayUnpickler(content, file).load()
            x, y = np.asarray(values[b"data"]), np.asarray(values[_LABELS[name]], np.int64)
        except InputError:
            raise
        except Exception as error:  # a damaged pickle may raise any exception
            raise InputError(f"{file} is damaged ({type(error).__name__}: {error}); get it again") from None
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072 or y.shape != (len(x),):
        raise InputError(f"{file} has no 32x32 colour images with labels; get it again")
    check_labels(y, _COUNT[name], file)
    return np.ascontiguousarray(x.reshape(-1, 3, 32, 32)), y


def _fingerprint(root: Path, name: str) -> list[list[Any]]:
    """Return plain data that changes whenever the files do."""
    paths = [root, *sorted(root.glob(_INNER[name]))]
    files = [f for path in paths for f in ([path] if path.is_file() else sorted(path.iterdir()))]
    return [[str(f), *cache.file_state(f.stat())] for f in files if f.is_file()]


def _contents(root: Path, name: str) -> list[tuple[str, bytes]]:
    """Return (name, content) of each file of the data set, training files first, from a folder or archive.

    The folder may contain the published folder or archive instead of the files themselves.
    """
    parts = _FILES[name]
    contents: dict[str, tuple[str, bytes]] = {}
    try:
        for path in (root, *sorted(root.glob(_INNER[name]))):
            contents = _read_folder(path, parts) if path.is_dir() else _read_archive(path, parts)
            if contents:
                break
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); get it again") from None
    for part in parts:
        if part not in contents:
            raise InputError(
                f"{root} has no {part}; give the folder or archive of {name} as published, or {name}:download"
            )
    return [contents[part] for part in parts]


def _read_folder(folder: Path, parts: Sequence[str]) -> dict[str, tuple[str, bytes]]:
    files = {part: folder / end for part in parts for end in (part + ".bin", part) if (folder / end).is_file()}
    return {part: (str(file), file.read_bytes()) for part, file in files.items()}


def _read_archive(path: Path, parts: Sequence[str]) -> dict[str, tuple[str, bytes]]:
    """Read the archive's files in one pass, whatever their folder is."""
    contents: dict[str, tuple[str, bytes]] = {}
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            part = PurePosixPath(member.name).name.removesuffix(".bin")
            if member.isfile() and part in parts:
                file = archive.extractfile(member)
                contents.setdefault(part, (f"{path}: {member.name}", file.read() if file else b""))
    return contents


def _download(name: str, home: Path) -> None:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError):  # RuntimeError: torchvision was built for another torch
        raise InputError("downloading needs torchvision: pip install 'steppe[vision]'") from None
    try:
        (datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100)(str(home), download=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: wrong checksum
        raise InputError(
            f"cannot download {name} into {home} ({error}); get it yourself and give {name}:PATH"
        ) from None
