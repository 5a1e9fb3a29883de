"""Image folders and archives of them: one sub-folder per class, any image that Pillow reads.

Archives are read as a stream and never unpacked: names inside them are labels, not paths, so that one made to
attack has nowhere to write. Links, devices and names that climb out are passed over.
"""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from steppe.config import Data
from steppe.data.cache import cached
from steppe.data.images import Images, Source
from steppe.data.split import stratified
from steppe.errors import InputError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_TEST_FOLDERS = ("test", "val", "validation")
_TEST_SHARE = 0.2
_CHUNK = 1024  # encoded images held in memory at a time


@dataclass(frozen=True)
class _Decoded:
    """An image file: its path inside the folder, its pixels (H, W, C), or why it has none."""

    name: str
    pixels: np.ndarray | None
    reason: str = ""


def load(path: Path, options: Data) -> Source:
    """Return the images of a folder or archive, with the layout ``train/CLASS`` and ``test/CLASS``, or ``CLASS``.

    With the latter, a fifth of every class becomes the test images. Images of one size are kept as they are;
    otherwise ``data.size`` must be given. If all are grey, images have one channel, else three.

    Raises InputError for a missing path, no or one class, an empty class, an unreadable image (unless they are
    to be skipped), and images that are not square or not of one size without ``data.size``.
    """
    if path.is_dir():
        files = sorted(_files(path))
        stamp: Any = [[n, s.st_size, s.st_mtime_ns] for n, s in ((n, (path / n).stat()) for n in files)]
    elif path.is_file() and path.name.lower().endswith(ARCHIVES):
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    elif path.exists():
        raise InputError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    else:
        raise InputError(f"there is no {path}; give the folder or archive that holds a sub-folder per class")
    key = ["folder", str(path.resolve()), stamp, options.size, options.skip_corrupt]
    return cached(key, lambda: _decode_all(path, options))


def _decode_all(path: Path, options: Data) -> Source:
    found = list(_decode(_bytes_in(path), options.size))
    corrupt = [d for d in found if d.pixels is None]
    if corrupt and not options.skip_corrupt:
        first = corrupt[0]
        more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
        raise InputError(
            f"image {first.name}{more} in {path} cannot be read ({first.reason}); "
            "repair or remove it, or give --data.skip_corrupt"
        )
    readable = [d for d in found if d.pixels is not None]
    parts = _parts(path, [d.name for d in found], readable)
    if options.size is None:
        _check_sizes(path, readable)
    classes = _classes(path, parts)
    grey = all(d.pixels is not None and _is_grey(d.pixels) for d in readable)
    train, test = (_images(parts[p], classes, grey) for p in ("train", "test"))
    note = f"test images: the {path.name} folder's own"
    if not len(test):
        y = train.y.numpy()
        chosen = stratified(y, round(_TEST_SHARE * len(y)), np.random.default_rng(0))
        test = train.take(chosen)
        train = train.take(np.setdiff1d(np.arange(len(y)), chosen))
        note = "test images: a fixed fifth of every class, as the folder has no test images of its own"
    return Source(train, test, classes, tuple(d.name for d in corrupt), note)


def _files(root: Path) -> Iterator[str]:
    """Yield the image files below a folder; linked folders are not entered, so no loop and no way out."""
    for folder, subfolders, files in os.walk(root, followlinks=False):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in sorted(files):
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if _is_image(relative):
                yield relative


def _is_image(name: str) -> bool:
    last = PurePosixPath(name).name
    return last.lower().endswith(IMAGES) and not last.startswith(".")


def _bytes_in(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every image file of a folder or archive."""
    if path.is_dir():
        for name in _files(path):
            yield name, (path / name).read_bytes()
        return
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                inner = PurePosixPath(member.name)
                if not member.isfile() or not _is_image(member.name) or inner.is_absolute() or ".." in inner.parts:
                    continue
                file = archive.extractfile(member)
                yield str(inner), file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InputError(f"archive {path} cannot be read ({error}); make it anew") from None


def _decode(files: Iterable[tuple[str, bytes]], size: int | None) -> Iterator[_Decoded]:
    """Decode side by side, in order, a chunk of files at a time."""
    files = iter(files)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(files, _CHUNK)):
            yield from pool.map(lambda file: _decode_one(file[0], file[1], size), chunk)


def _decode_one(name: str, content: bytes, size: int | None) -> _Decoded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                pixels = _pixels(image, size)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        return _Decoded(name, None, str(error).splitlines()[0] if str(error) else type(error).__name__)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return _Decoded(name, None, "far too many pixels")
    return _Decoded(name, pixels)


def _pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8: the first frame, without transparency, 16 bits brought to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image, np.float64)
        image = Image.fromarray((wide / (257 if wide.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _parts(path: Path, names: list[str], readable: list[_Decoded]) -> dict[str, dict[str, list[_Decoded]]]:
    """Sort images into train and test and by class, whatever single folder stands above them."""
    if not names:
        raise InputError(f"{path} has no images ({', '.join(IMAGES)}); give a folder with a sub-folder per class")
    tops = {PurePosixPath(n).parts[0] for n in names if len(PurePosixPath(n).parts) > 1}
    deep = min(len(PurePosixPath(n).parts) for n in names)
    cut = 1 if len(tops) == 1 and deep > 2 and not tops & {"train", *_TEST_FOLDERS} else 0
    heads = {PurePosixPath(n).parts[cut] for n in names if len(PurePosixPath(n).parts) > cut + 1}
    test_folder = next((t for t in _TEST_FOLDERS if t in heads), None) if "train" in heads else None
    parts: dict[str, dict[str, list[_Decoded]]] = {"train": {}, "test": {}}
    for one in readable:
        words = PurePosixPath(one.name).parts[cut:]
        part = "train"
        if "train" in heads:
            if words[0] not in ("train", test_folder):
                continue
            part, words = ("test" if words[0] == test_folder else "train"), words[1:]
        if len(words) >= 2:
            parts[part].setdefault(words[0], []).append(one)
    if path.is_dir():
        _check_empty(path, parts, test_folder if "train" in heads else None, "train" in heads)
    return parts


def _check_empty(
    path: Path, parts: dict[str, dict[str, list[_Decoded]]], test_folder: str | None, split: bool
) -> None:
    """Raise InputError for a class folder on disk that holds no image."""
    homes = [("train", path / "train" if split else path)] + (
        [("test", path / test_folder)] if test_folder else []
    )
    for part, home in homes:
        for sub in sorted(p for p in home.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if sub.name not in parts[part] and sub.name not in {"train", *_TEST_FOLDERS}:
                raise InputError(f"class folder {sub} has no readable image; fill it or remove it")


def _classes(path: Path, parts: dict[str, dict[str, list[_Decoded]]]) -> tuple[str, ...]:
    classes = tuple(sorted(parts["train"]))
    if len(classes) < 2:
        held = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise InputError(f"{path} has {held}; give a sub-folder for each of two or more classes")
    if parts["test"] and (odd := sorted(set(parts["test"]) ^ set(classes))):
        where = "training" if odd[0] in parts["test"] else "test"
        raise InputError(f"class {odd[0]!r} of {path} has no {where} images; add them or remove the class")
    return classes


def _check_sizes(path: Path, images: list[_Decoded]) -> None:
    shapes = [d.pixels.shape[:2] for d in images if d.pixels is not None]
    for one, (h, w) in zip(images, shapes, strict=True):
        if h != w:
            raise InputError(f"image {one.name} in {path} is {w}x{h}; give --data.size N to make all square")
        if (h, w) != shapes[0]:
            raise InputError(
                f"image {one.name} in {path} is {w}x{h}, {images[0].name} is {shapes[0][1]}x{shapes[0][0]}; "
                "give --data.size N to make all equal"
            )


def _is_grey(pixels: np.ndarray) -> bool:
    return bool(pixels.shape[2] == 1)


def _images(by_class: dict[str, list[_Decoded]], classes: tuple[str, ...], grey: bool) -> Images:
    arrays = []
    labels = []
    for label, name in enumerate(classes):
        for one in by_class.get(name, []):
            assert one.pixels is not None
            wide = one.pixels if grey or one.pixels.shape[2] == 3 else np.repeat(one.pixels, 3, axis=2)
            arrays.append(wide.transpose(2, 0, 1))
            labels.append(label)
    x = np.stack(arrays) if arrays else np.empty((0, 1 if grey else 3, 1, 1), np.uint8)
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.tensor(labels, dtype=torch.int64))
