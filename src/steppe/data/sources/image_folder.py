"""Image folders and archives of them: one sub-folder per class, any image that Pillow reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source
from steppe.data.sources._image_files import ImageFiles, ProgressCallback, decode
from steppe.data.sources._layout import Label, find_layout
from steppe.data.sources._part_names import folded
from steppe.data.sources.cache import cached, file_state
from steppe.data.sources.listing import ARCHIVES, IMAGES, Listing, is_table, list_files
from steppe.data.sources.pixels import REMARKS, TOO_LARGE, UNKNOWN, Decoded, to_8_bits
from steppe.data.splits import split_off_test
from steppe.errors import InputError


def load(path: Path, options: Data, progress: ProgressCallback | None = None) -> Source:
    """Return the images of a folder or archive: those of parts (train, val, test) and classes, or of classes only.

    Parts and classes are folders, or columns of a table (see `find_layout`). A path to a table, such as
    ``photos/labels.csv``, is the folder around it, labelled by this table. Without test images a fifth of every
    class is taken; ``val`` serves as ``test`` if there is none. Images that all have one size keep it; otherwise
    ``data.size`` is needed. Images have one channel if all are grey, else three. The source's note says what was
    changed in decoding and what was left out. ``progress`` is called with the amount decoded and the total, unless
    the images are cached.

    Raises InputError for a missing path, an unclear layout, fewer than two classes, an empty class, an unreadable
    image (unless skipped), and without ``data.size`` for images that are not square or of different sizes.
    """
    decoders = find_spec("pillow_heif") is not None
    path, table = root_of_table(path) if path.is_file() and is_table(path.name) else (path, None)
    key = ["folder", str(path.resolve()), table, files_state(path), options.size, options.skip_corrupt, decoders]
    return cached(key, lambda: _decode_all(path, options, table, progress))


def root_of_table(path: Path) -> tuple[Path, str]:
    """Return the nearest folder around a table that has images, and the table's name in it."""
    for root in path.absolute().parents[:3]:
        if list_files(root).images:
            return root, path.absolute().relative_to(root).as_posix()
    raise InputError(f"there are no images beside {path} or in the two folders around it; put it beside them")


def files_state(path: Path) -> Any:
    """Return plain data that changes whenever the files do."""
    if path.is_dir():
        listing = list_files(path)
        names = [*listing.images, *listing.tables]
        states = [_state(f"{path}/{name}") for name in names]
        folders = [sorted(names) for names in (listing.folders, listing.filled, listing.foreign, listing.system)]
        return [
            folders,
            listing.other,
            [[n, *file_state(s)] for n, s in zip(names, states, strict=True)],
        ]
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        return file_state(path.stat())
    if path.exists():
        raise InputError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    raise InputError(f"there is no {path}; give the folder or archive with a sub-folder per class")


def _state(file: str) -> os.stat_result:
    try:
        return os.stat(file)
    except OSError:  # a broken link, which is reported when it is decoded
        return os.lstat(file)


def _decode_all(path: Path, options: Data, table: str | None, progress: ProgressCallback | None = None) -> Source:
    files = ImageFiles(path, progress)
    images = []
    for image in decode(files, options.size):
        if image.reason in (UNKNOWN, TOO_LARGE) and not PurePosixPath(image.name).suffix:
            files.listing.other["extensionless file"] += 1
        else:
            images.append(image)
    if not images:
        kinds = (
            ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in files.listing.other.most_common(3)) or "nothing"
        )
        is_packed = any(files.listing.other[f"{ending} file"] for ending in (".zip", ".tar", ".gz", ".tgz", ".xz"))
        raise InputError(
            f"{path} has no images ({', '.join(IMAGES)}), but {kinds}; "
            + (
                "unpack it, or give the archive itself"
                if is_packed
                else "give a folder with a sub-folder per class"
            )
        )
    layout = find_layout(path, [image.name for image in images], files.listing, files.tables, table)
    labelled = [(image, layout.label[image.name]) for image in images if image.name in layout.label]
    corrupt = [image for image, _ in labelled if image.pixels is None]
    if corrupt and not options.skip_corrupt:
        more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
        raise InputError(
            f"image {corrupt[0].name}{more} in {path} cannot be read ({corrupt[0].reason}); "
            "repair or remove it, or give --data.skip_corrupt"
        )
    readable, deep = to_8_bits([image for image, _ in labelled if image.pixels is not None])
    by_label: dict[Label, list[np.ndarray]] = {}
    for image in readable:
        assert image.pixels is not None
        by_label.setdefault(layout.label[image.name], []).append(image.pixels)
    for folder, label in layout.classes.items():
        if label not in by_label:
            raise InputError(f"class folder {folder} of {path} has no readable image; fill it or remove it")
    classes = _classes(path, by_label, _left_out(files.listing, layout.notes))
    if options.size is None:
        check_sizes(path, readable)
    train, val, test = (_images(by_label, part, classes) for part in ("train", "val", "test"))
    notes = [f"test images: {layout.origin.get('test')}"]
    if not len(test):
        train, test = split_off_test(train)
        notes = ["test images: a fixed fifth of every class, as there are none apart"]
    if len(val):
        notes.append(f"validation images: {layout.origin['val']}")
    counts = Counter(remark for image in readable for remark in image.remarks)
    notes += [deep] if deep else []
    notes += [f"{counts[remark]} {text}" for remark, text in REMARKS.items() if counts[remark]]
    notes += _left_out(files.listing, layout.notes)
    return Source(
        train, test, classes, tuple(d.name for d in corrupt), "; ".join(notes), val if len(val) else None
    )


def _left_out(listing: Listing, notes: Sequence[str]) -> list[str]:
    """Return a note on all that is not read."""
    parts = [*notes, *(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in listing.other.most_common())]
    if listing.system:
        names = sorted({PurePosixPath(name).name for name in listing.system})
        parts.append(
            f"{len(listing.system)} of the system ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        )
    return [f"left out: {', '.join(parts)}"] if parts else []


def _classes(path: Path, labels: Iterable[Label], left_out: Sequence[str]) -> tuple[str, ...]:
    train, val, test = ({name for part, name in labels if part == which} for which in ("train", "val", "test"))
    if len(train) < 2:
        content = f"only the class {next(iter(train))!r}" if train else "no class folders for training"
        raise InputError(
            f"{path} has {content}; give a sub-folder for each of two or more classes, or a CSV file with a "
            f"column of file names and a column 'label'{''.join(f' ({note})' for note in left_out)}"
        )
    if unpaired := sorted((test ^ train if test else set()) | val - train):
        missing = "test" if unpaired[0] in train else "training"
        remedy = "add them or remove the class"
        if unpaired[0].isdigit() and not any(name.isdigit() for name in train):  # as Caffe's lists have
            names = ", ".join(sorted(train)[:2])
            remedy = f"write the names of the training classes ({names}, ...) for the numbers"
        others = (train | val | test) - {unpaired[0]}
        if twin := next((name for name in others if folded(name) == folded(unpaired[0])), None):
            remedy = f"{twin!r} differs in capitals, spaces or the form of accents only; give both one name"
        raise InputError(f"class {unpaired[0]!r} of {path} has no {missing} images; {remedy}")
    return tuple(sorted(train))


def check_sizes(path: Path, images: Sequence[Decoded]) -> None:
    """Raise InputError unless all images are square and of one size."""
    sizes = [(d.name, d.pixels.shape[1], d.pixels.shape[0]) for d in images if d.pixels is not None]
    for name, w, h in sizes:
        if w != h:
            raise InputError(f"image {name} in {path} is {w}x{h}; give --data.size N (32, say) to make all square")
        if w != sizes[0][1]:
            raise InputError(
                f"image {name} in {path} is {w}x{h}, {sizes[0][0]} is {sizes[0][1]}x{sizes[0][2]}; "
                "give --data.size N (32, say) to make all equal"
            )


def _images(by_label: Mapping[Label, list[np.ndarray]], part: str, classes: tuple[str, ...]) -> Images:
    grey = all(pixels.shape[2] == 1 for group in by_label.values() for pixels in group)
    groups = [by_label.get((part, name), []) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(g) for g in groups])
    return Images(stacked([p for g in groups for p in g], grey), torch.from_numpy(labels.astype(np.int64)))


def stacked(images: Sequence[np.ndarray], grey: bool) -> torch.Tensor:
    """Return images (H, W, 1 or 3) as one tensor (N, C, H, W) uint8, of one channel if ``grey``, else three."""
    arrays = [(p if grey or p.shape[2] == 3 else np.repeat(p, 3, axis=2)).transpose(2, 0, 1) for p in images]
    x = np.empty((len(arrays), *(arrays[0].shape if arrays else (1 if grey else 3, 1, 1))), np.uint8)
    if arrays:
        np.stack(arrays, out=x)  # which would keep the order of the images, channels last
    return torch.from_numpy(x)
