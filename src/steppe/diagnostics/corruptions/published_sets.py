"""Corrupted images as they were published: ImageNet-C's folders, beside the arrays of the CIFAR sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from steppe.data.dataset import Images, resized
from steppe.data.sources.image_files import IMAGES
from steppe.diagnostics.corruptions import FAMILIES, SEVERITIES, read_official
from steppe.errors import InputError

_ABOVE = ("", *FAMILIES, "extra")  # the archives may have been unpacked into a folder each


def is_tree(folder: Path) -> bool:
    """Return whether the folder is laid out as ImageNet-C rather than as CIFAR-10-C."""
    return folder.is_dir() and not any(folder.glob("*.npy"))


def read_published(
    folder: Path, name: str, severity: int, classes: Sequence[str], size: int, channels: int, count: int
) -> Images:
    """Return ``count`` images of one corruption from published files, evenly spaced, at a network's size.

    Args:
        folder: Of ``NAME.npy`` and ``labels.npy`` (see `steppe.diagnostics.corruptions.read_official`), or of
            ``NAME/SEVERITY/CLASS/*.JPEG``, also below a folder of the corruption's family.
        name: Corruption.
        severity: 1 to 5.
        classes: The network's classes in order. A tree's class folders bear their names, and others there are not
            read; the arrays number them.
        size: Side in pixels that images are resized to.
        channels: 1 for grey images, 3 for colour.
        count: Images; all if there are no more.

    Raises InputError if a file or folder is missing or unreadable, images or classes are others than the
    network's, or the severity is not 1 to 5.
    """
    if is_tree(folder):
        return read_tree(folder, name, severity, classes, size, channels, count)
    images = read_official(folder, name, severity, count)
    held = images.x.shape[1]
    if held != channels or int(images.y.max()) >= len(classes):
        raise InputError(
            f"the corrupted images have {held} channels and class {int(images.y.max())}; the data set has "
            f"{channels} and {len(classes)} classes: give the files of the same data set"
        )
    return Images(torch.from_numpy(resized(images.x.numpy(), size)), images.y)


def read_tree(
    folder: Path, name: str, severity: int, classes: Sequence[str], size: int, channels: int, count: int
) -> Images:
    """Return images of a folder ``NAME/SEVERITY/CLASS/*.JPEG``; see `read_published`."""
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity}; give 1 to 5")
    homes = [home for above in _ABOVE if (home := folder / above / name / str(severity)).is_dir()]
    if not homes:
        raise InputError(
            f"there is no {folder / name / str(severity)}; give the folder of ImageNet-C "
            "(CORRUPTION/SEVERITY/CLASS), or that of CIFAR-10-C's .npy files"
        )
    files: list[tuple[Path, int]] = []
    for number, label in enumerate(classes):
        own = homes[0] / label
        found = sorted(p for p in own.glob("*") if p.suffix.lower() in IMAGES) if own.is_dir() else []
        if not found:
            raise InputError(
                f"{homes[0]} has no images of class {label!r}; give the corrupted images of the same data set, in "
                "a folder for each class under its name"
            )
        files += [(path, number) for path in found]
    wanted = min(count, len(files))
    chosen = [files[i * len(files) // wanted] for i in range(wanted)]
    x = np.stack([_pixels(path, size, channels) for path, _ in chosen])
    return Images(torch.from_numpy(x), torch.tensor([number for _, number in chosen]))


def _pixels(path: Path, size: int, channels: int) -> np.ndarray:
    """Return an image as (C, H, W) uint8, resized bilinearly as the images of a data set are."""
    try:
        with Image.open(path) as image:
            whole = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"image {path} cannot be read ({reason}); unpack the archive again") from None
    pixels = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0))
