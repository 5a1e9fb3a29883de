"""Image folders and archives of them: one sub-folder per class, any image that Pillow reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source
from steppe.data.sources.cache import cached
from steppe.data.sources.image_files import IMAGES, Decoded, Files, Progress, decode, listing
from steppe.data.splits import stratified
from steppe.errors import InputError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_TEST_FOLDERS = ("test", "val", "validation")
_TEST_SHARE = 0.2
_log = logging.getLogger(__name__)


def load(path: Path, options: Data, progress: Progress | None = None) -> Source:
    """Return the images of a folder or archive, with the layout ``train/CLASS`` and ``test/CLASS``, or ``CLASS``.

    With the latter, a fifth of every class becomes the test images; ``val`` or ``validation`` stands in for a
    missing ``test``. All of it may lie in one folder. Images outside the class folders are not read. Images of
    one size are kept as they are; otherwise ``data.size`` must be given. If all are grey, images have one
    channel, else three. ``progress`` hears how much is decoded of how much, unless the cache holds it already.

    Raises InputError for a missing path, no or one class, an empty class, an unreadable image (unless they are
    to be skipped), and images that are not square or not of one size without ``data.size``.
    """
    key = ["folder", str(path.resolve()), _stamp(path), options.size, options.skip_corrupt]
    return cached(key, lambda: _decode_all(path, options, progress))


def _stamp(path: Path) -> Any:
    """Return plain data that changes whenever the files do."""
    if path.is_dir():
        names, folders = listing(path)
        # lstat where a link leads nowhere: unreadable is told on decoding, with all others like it
        states = [(path / n).stat() if (path / n).exists() else (path / n).lstat() for n in names]
        return [sorted(folders), [[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, states, strict=True)]]
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        return [path.stat().st_size, path.stat().st_mtime_ns]
    if path.exists():
        raise InputError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    raise InputError(f"there is no {path}; give the folder or archive that holds a sub-folder per class")


@dataclass(frozen=True)
class _Layout:
    """Where class folders stand: below ``cut`` folders, and below train and the test folder if ``split``."""

    cut: int
    split: bool
    test: str | None

    @classmethod
    def of(cls, names: Iterable[str], folders: Iterable[str]) -> _Layout:
        """Find the layout from image files and folders; a single top folder above everything is cut off."""
        files = [PurePosixPath(n).parts for n in names]
        homes = {PurePosixPath(f).parts for f in folders} | {f[:-1] for f in files if len(f) > 1}
        tops = {h[0] for h in homes}
        wrapped = len(tops) == 1 and not tops & {"train", *_TEST_FOLDERS} and any(len(f) > 2 for f in files)
        cut = int(wrapped)
        heads = {h[cut] for h in homes if len(h) > cut + 1}
        split = "train" in heads
        return cls(cut, split, next((t for t in _TEST_FOLDERS if t in heads), None) if split else None)

    def place(self, folder: str) -> tuple[str, str] | None:
        """Return the part (train or test) and class of what lies in a folder; None outside class folders."""
        words = PurePosixPath(folder).parts[self.cut :]
        part = "train"
        if self.split:
            if not words or words[0] not in ("train", self.test):
                return None
            part, words = "test" if words[0] == self.test else "train", words[1:]
        return (part, words[0]) if words else None


def _decode_all(path: Path, options: Data, progress: Progress | None = None) -> Source:
    files = Files(path, progress)
    found = decode(files, options.size)
    if not found:
        raise InputError(f"{path} has no images ({', '.join(IMAGES)}); give a folder with a sub-folder per class")
    layout = _Layout.of([d.name for d in found], files.folders)
    places = {d.name: layout.place(os.path.dirname(d.name)) for d in found}
    used = [d for d in found if places[d.name] is not None]
    if len(used) < len(found):
        _log.info("%d images of %s lie outside its class folders and are not used", len(found) - len(used), path)
    corrupt = [d for d in used if d.pixels is None]
    if corrupt and not options.skip_corrupt:
        more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
        raise InputError(
            f"image {corrupt[0].name}{more} in {path} cannot be read ({corrupt[0].reason}); "
            "repair or remove it, or give --data.skip_corrupt"
        )
    by_place: dict[tuple[str, str], list[np.ndarray]] = {}
    for one in used:
        place = places[one.name]
        if one.pixels is not None and place is not None:
            by_place.setdefault(place, []).append(one.pixels)
    _check_empty(path, layout, files.folders, by_place)
    classes = _classes(path, by_place)
    if options.size is None:
        _check_sizes(path, used)
    grey = all(pixels.shape[2] == 1 for group in by_place.values() for pixels in group)
    train, test = (_images(by_place, part, classes, grey) for part in ("train", "test"))
    note = f"test images: the folder {layout.test} of {path.name}"
    if not len(test):
        y = train.y.numpy()
        chosen = stratified(y, round(_TEST_SHARE * len(y)), np.random.default_rng(0))
        test = train.take(chosen)
        train = train.take(np.setdiff1d(np.arange(len(y)), chosen))
        note = "test images: a fixed fifth of every class, as the folder has no test images of its own"
    return Source(train, test, classes, tuple(d.name for d in corrupt), note)


def _check_empty(path: Path, layout: _Layout, folders: set[str], by_place: Iterable[tuple[str, str]]) -> None:
    """Raise InputError for a class folder without a readable image: its class would silently be missing."""
    filled = set(by_place)
    for folder in sorted(folders):
        place = layout.place(folder)
        if place is not None and place not in filled:
            raise InputError(
                f"class folder {folder} of {path} has no readable image (linked folders are not entered); "
                "fill it or remove it"
            )


def _classes(path: Path, by_place: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    train, test = ({name for part, name in by_place if part == wanted} for wanted in ("train", "test"))
    if len(train) < 2:
        held = f"only the class {next(iter(train))!r}" if train else "no class folders"
        raise InputError(f"{path} has {held}; give a sub-folder for each of two or more classes")
    if test and (odd := sorted(test ^ train)):
        where = "training" if odd[0] in test else "test"
        raise InputError(f"class {odd[0]!r} of {path} has no {where} images; add them or remove the class")
    return tuple(sorted(train))


def _check_sizes(path: Path, images: list[Decoded]) -> None:
    first: tuple[str, int, int] | None = None
    for one in images:
        if one.pixels is None:
            continue
        h, w = one.pixels.shape[:2]
        first = first or (one.name, h, w)
        if h != w:
            raise InputError(
                f"image {one.name} in {path} is {w}x{h}; give --data.size N (32, say) to make all square"
            )
        if h != first[1]:
            raise InputError(
                f"image {one.name} in {path} is {w}x{h}, {first[0]} is {first[2]}x{first[1]}; "
                "give --data.size N (32, say) to make all equal"
            )


def _images(
    by_place: dict[tuple[str, str], list[np.ndarray]], part: str, classes: tuple[str, ...], grey: bool
) -> Images:
    groups = [by_place.get((part, name), []) for name in classes]
    arrays = [
        (p if grey or p.shape[2] == 3 else np.repeat(p, 3, axis=2)).transpose(2, 0, 1) for g in groups for p in g
    ]
    labels = np.repeat(np.arange(len(classes)), [len(g) for g in groups])
    x = np.stack(arrays) if arrays else np.empty((0, 1 if grey else 3, 1, 1), np.uint8)
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(labels.astype(np.int64)))
