"""Image folders and archives of them: one sub-folder per class, any image that Pillow reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source
from steppe.data.sources.cache import cached
from steppe.data.sources.image_files import IMAGES, Decoded, ImageFiles, ProgressCallback, decode, list_images
from steppe.data.splits import split_off_fifth
from steppe.errors import InputError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_TEST_FOLDERS = ("test", "val", "validation")
_Label = tuple[str, str]  # part (train or test) and class of an image
_log = logging.getLogger(__name__)


def load(path: Path, options: Data, progress: ProgressCallback | None = None) -> Source:
    """Return the images of a folder or archive with the layout ``train/CLASS`` and ``test/CLASS``, or ``CLASS``.

    With the latter, a fifth of every class becomes the test images. ``val`` or ``validation`` replaces a missing
    ``test``. One folder may contain all of it. Images outside the class folders are not read. Images that all have
    one size keep it; otherwise ``data.size`` is needed. Images have one channel if all are grey, else three.
    ``progress`` is called with the amount decoded and the total, unless the images are cached.

    Raises InputError for a missing path, fewer than two classes, an empty class, an unreadable image (unless
    skipped), and without ``data.size`` for images that are not square or of different sizes.
    """
    key = ["folder", str(path.resolve()), _fingerprint(path), options.size, options.skip_corrupt]
    return cached(key, lambda: _decode_all(path, options, progress))


def _fingerprint(path: Path) -> Any:
    """Return plain data that changes whenever the files do."""
    if path.is_dir():
        names, folders = list_images(path)
        # lstat for a broken link, which is reported when it is decoded
        states = [(path / n).stat() if (path / n).exists() else (path / n).lstat() for n in names]
        return [sorted(folders), [[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, states, strict=True)]]
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        return [path.stat().st_size, path.stat().st_mtime_ns]
    if path.exists():
        raise InputError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    raise InputError(f"there is no {path}; give the folder or archive with a sub-folder per class")


@dataclass(frozen=True)
class _Layout:
    """Position of the class folders: below ``cut`` folders, and if ``split`` below ``train`` and ``test``."""

    cut: int
    split: bool
    test: str | None

    @classmethod
    def of(cls, names: Iterable[str], folders: Iterable[str]) -> _Layout:
        """Return the layout of these image files and folders; a single top folder around everything is cut off."""
        files = [PurePosixPath(n).parts for n in names]
        parents = {PurePosixPath(f).parts for f in folders} | {f[:-1] for f in files if len(f) > 1}
        tops = {p[0] for p in parents}
        cut = int(len(tops) == 1 and not tops & {"train", *_TEST_FOLDERS} and any(len(f) > 2 for f in files))
        heads = {p[cut] for p in parents if len(p) > cut + 1}
        split = "train" in heads
        return cls(cut, split, next((t for t in _TEST_FOLDERS if t in heads), None) if split else None)

    def label(self, folder: str) -> _Label | None:
        """Return part and class of the images in a folder; None outside the class folders."""
        names = PurePosixPath(folder).parts[self.cut :]
        part = "train"
        if self.split:
            if not names or names[0] not in ("train", self.test):
                return None
            part, names = "test" if names[0] == self.test else "train", names[1:]
        return (part, names[0]) if names else None


def _decode_all(path: Path, options: Data, progress: ProgressCallback | None = None) -> Source:
    files = ImageFiles(path, progress)
    images = decode(files, options.size)
    if not images:
        raise InputError(f"{path} has no images ({', '.join(IMAGES)}); give a folder with a sub-folder per class")
    layout = _Layout.of([d.name for d in images], files.folders)
    labelled = [(d, label) for d in images if (label := layout.label(os.path.dirname(d.name))) is not None]
    if unused := len(images) - len(labelled):
        _log.info("%d images of %s are outside its class folders and are not used", unused, path)
    corrupt = [d for d, _ in labelled if d.pixels is None]
    if corrupt and not options.skip_corrupt:
        more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
        raise InputError(
            f"image {corrupt[0].name}{more} in {path} cannot be read ({corrupt[0].reason}); "
            "repair or remove it, or give --data.skip_corrupt"
        )
    by_label: dict[_Label, list[np.ndarray]] = {}
    for image, label in labelled:
        if image.pixels is not None:
            by_label.setdefault(label, []).append(image.pixels)
    for folder in sorted(files.folders):
        if (label := layout.label(folder)) is not None and label not in by_label:
            raise InputError(
                f"class folder {folder} of {path} has no readable image (linked folders are not entered); "
                "fill it or remove it"
            )
    classes = _classes(path, by_label)
    if options.size is None:
        _check_sizes(path, [image for image, _ in labelled])
    train, test = (_images(by_label, part, classes) for part in ("train", "test"))
    note = f"test images: the folder {layout.test} of {path.name}"
    if not len(test):
        train, test = split_off_fifth(train)
        note = "test images: a fixed fifth of every class, as the folder has no test images of its own"
    return Source(train, test, classes, tuple(d.name for d in corrupt), note)


def _classes(path: Path, labels: Iterable[_Label]) -> tuple[str, ...]:
    train, test = ({name for part, name in labels if part == which} for which in ("train", "test"))
    if len(train) < 2:
        content = f"only the class {next(iter(train))!r}" if train else "no class folders"
        raise InputError(f"{path} has {content}; give a sub-folder for each of two or more classes")
    if test and (unpaired := sorted(test ^ train)):
        missing = "training" if unpaired[0] in test else "test"
        raise InputError(f"class {unpaired[0]!r} of {path} has no {missing} images; add them or remove the class")
    return tuple(sorted(train))


def _check_sizes(path: Path, images: list[Decoded]) -> None:
    sizes = [(d.name, d.pixels.shape[1], d.pixels.shape[0]) for d in images if d.pixels is not None]
    for name, w, h in sizes:
        if w != h:
            raise InputError(f"image {name} in {path} is {w}x{h}; give --data.size N (32, say) to make all square")
        if w != sizes[0][1]:
            raise InputError(
                f"image {name} in {path} is {w}x{h}, {sizes[0][0]} is {sizes[0][1]}x{sizes[0][2]}; "
                "give --data.size N (32, say) to make all equal"
            )


def _images(by_label: Mapping[_Label, list[np.ndarray]], part: str, classes: tuple[str, ...]) -> Images:
    grey = all(pixels.shape[2] == 1 for group in by_label.values() for pixels in group)
    groups = [by_label.get((part, name), []) for name in classes]
    arrays = [
        (p if grey or p.shape[2] == 3 else np.repeat(p, 3, axis=2)).transpose(2, 0, 1) for g in groups for p in g
    ]
    labels = np.repeat(np.arange(len(classes)), [len(g) for g in groups])
    x = np.stack(arrays) if arrays else np.empty((0, 1 if grey else 3, 1, 1), np.uint8)
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(labels.astype(np.int64)))
