"""Published corrupted images: the folders of ImageNet-C and the arrays of CIFAR-10-C and CIFAR-100-C."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from steppe.data.dataset import Images, resized
from steppe.data.sources.listing import IMAGES
from steppe.data.sources.pixels import decode_one, to_8_bits
from steppe.diagnostics.corruptions import FAMILIES, SEVERITIES
from steppe.errors import InputError

_PARENTS = ("", *FAMILIES, "extra")  # each archive may have been unpacked into a folder of its own


def read_published(
    folder: Path, name: str, severity: int, classes: Sequence[str], size: int, channels: int, count: int
) -> Images:
    """Return ``count`` evenly spaced images of one corruption from published files, at a network's size.

    Args:
        folder: Contains ``NAME.npy`` and ``labels.npy`` (see `read_arrays`), or ``NAME/SEVERITY/CLASS/*.JPEG``,
            possibly below a folder of the corruption's family.
        name: Corruption.
        severity: 1 to 5.
        classes: The network's classes in order: the names of class folders, of which others are not read, and the
            meaning of the arrays' numbers.
        size: Side in pixels that images are resized to.
        channels: 1 for grey images, 3 for colour.
        count: Number of images; all if there are no more.

    Raises InputError if a file or folder is missing or unreadable, images or classes do not fit the network, or
    the severity is not 1 to 5.
    """
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity}; give 1 to 5")
    if folder.is_dir() and not any(folder.glob("*.npy")):
        return _read_class_folders(folder, name, severity, classes, size, channels, count)
    images = read_arrays(folder, name, severity, count)
    if images.x.shape[1] != channels or int(images.y.max()) >= len(classes):
        raise InputError(
            f"the corrupted images have {images.x.shape[1]} channels and class {int(images.y.max())}; the data "
            f"set has {channels} and {len(classes)} classes: give the files of the same data set"
        )
    return Images(torch.from_numpy(resized(images.x.numpy(), size)), images.y)


def read_arrays(folder: Path, name: str, severity: int, count: int | None = None) -> Images:
    """Return one corruption of CIFAR-10-C or CIFAR-100-C from its published ``.npy`` files.

    ``NAME.npy`` is (50000, 32, 32, 3) uint8, severity s in rows (s - 1) 10000 to s 10000, the test images in their
    order; ``labels.npy`` repeats their classes. ``count`` evenly spaced images are returned, all if not given.

    Raises InputError if a file is missing, damaged or of another shape.
    """
    x, y = _load_array(folder / f"{name}.npy"), _load_array(folder / "labels.npy")
    if x.ndim != 4 or x.shape[3] not in (1, 3) or x.dtype != np.uint8 or y.shape != (len(x),) or len(x) % 5:
        raise InputError(f"{folder}/{name}.npy is {x.shape} and labels.npy {y.shape}; give the published files")
    total = len(x) // 5
    count = total if count is None else min(count, total)
    rows = (severity - 1) * total + np.arange(count) * total // count
    pixels = np.ascontiguousarray(np.moveaxis(x[rows], -1, 1))
    return Images(torch.from_numpy(pixels), torch.from_numpy(y[rows].astype(np.int64)))


def _load_array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no {path}; give the folder of CIFAR-10-C or CIFAR-100-C") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; download it again") from None
    return array


def _read_class_folders(
    folder: Path, name: str, severity: int, classes: Sequence[str], size: int, channels: int, count: int
) -> Images:
    candidates = [folder / parent / name / str(severity) for parent in _PARENTS]
    root = next((path for path in candidates if path.is_dir()), None)
    if root is None:
        raise InputError(
            f"there is no {folder / name / str(severity)}; give the folder of ImageNet-C "
            "(CORRUPTION/SEVERITY/CLASS), or that of CIFAR-10-C's .npy files"
        )
    files: list[tuple[Path, int]] = []
    for number, label in enumerate(classes):
        paths = sorted(p for p in (root / label).glob("*") if p.suffix.lower() in IMAGES)
        if not paths:
            raise InputError(
                f"{root} has no images of class {label!r}; give the corrupted images of the same data set, with a "
                "folder named after each class"
            )
        files += [(path, number) for path in paths]
    count = min(count, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    x = np.stack([_pixels(path, size, channels) for path, _ in chosen])
    return Images(torch.from_numpy(x), torch.tensor([number for _, number in chosen]))


def _pixels(path: Path, size: int, channels: int) -> np.ndarray:
    """Return an image as (C, H, W) uint8, decoded like the images of a data set."""
    try:
        image = decode_one(path.name, path.read_bytes(), size)
    except OSError as error:
        image = decode_one(path.name, error, size)
    pixels = to_8_bits([image])[0][0].pixels
    if pixels is None:
        raise InputError(f"image {path} cannot be read ({image.reason}); unpack the archive again")
    if pixels.shape[2] != channels:
        converted = np.asarray(Image.fromarray(pixels.squeeze()).convert("L" if channels == 1 else "RGB"))
        pixels = converted[:, :, None] if channels == 1 else converted
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
