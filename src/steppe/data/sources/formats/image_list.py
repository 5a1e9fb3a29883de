"""Images labelled by a table of file names: one class, several labels, or numbers for each."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source
from steppe.data.sources._image_files import ImageFiles, ProgressCallback, decode
from steppe.data.sources._table_files import ImageNames
from steppe.data.sources._tables import LABEL_COLUMNS
from steppe.data.sources.cache import cached, file_state
from steppe.data.sources.formats.columns import Column, choose, parts_of, read_columns
from steppe.data.sources.formats.targets import make_target, separator_of, standardise_targets
from steppe.data.sources.image_folder import check_sizes, files_state, root_of_table, stacked
from steppe.data.sources.pixels import REMARKS, to_8_bits
from steppe.data.splits import split_off_test
from steppe.errors import InputError


def load(
    path: Path, options: Data, settings: Mapping[str, str], progress: ProgressCallback | None = None
) -> Source:
    """Return the images that a table names, with the targets that it gives them (see `make_target`).

    The images are in the nearest folder around the table that has any. ``image`` is the column of file names, by
    default the one that names most images; a name may lack folder and ending. ``label`` names one column or
    several, by default one called label or the like, or all others; ``split`` is the column of parts. Several rows
    of one image are its labels together. Without test images a fixed fifth is taken, of every class if there are
    classes.

    Raises InputError as `image_folder.load` does, and for columns that do not exist, that name no image, or that
    do not fit the task.
    """
    if path.is_dir():
        raise InputError(f"images:{path} is a folder; give the table of file names in it, or write folder:{path}")
    columns = read_columns(path)
    root, _ = root_of_table(path)
    key = ["images", str(path.resolve()), file_state(path.stat()), dict(settings), files_state(root), options.size]
    key += [options.skip_corrupt, find_spec("pillow_heif") is not None]
    source = cached(key, lambda: _decode(path, root, columns, options, settings, progress))
    return replace(source, prepare=standardise_targets)


def _decode(
    path: Path,
    root: Path,
    columns: dict[str, Column],
    options: Data,
    settings: Mapping[str, str],
    progress: ProgressCallback | None,
) -> Source:
    decoded = {image.name: image for image in decode(ImageFiles(root, progress), options.size)}
    names = ImageNames(decoded)
    split, parts = parts_of(columns, settings.get("split"), str(path))
    folder = path.absolute().parent.relative_to(root).as_posix()
    image, files = _files(path, columns, names, "" if folder == "." else f"{folder}/", settings)
    rows: dict[str, list[int]] = defaultdict(list)
    for i, file in enumerate(files):
        if file:
            rows[file].append(i)
    named = list(rows)
    labels = _label_columns(path, [c for n, c in columns.items() if n not in (image, split)], settings)
    labels = [_joined(column, list(rows.values()), settings, path) for column in labels]
    target = make_target(labels, settings, str(path))
    listed = [named[i] for i in target.rows]
    corrupt = [name for name in listed if decoded[name].pixels is None]
    if corrupt and not options.skip_corrupt:
        raise InputError(
            f"image {corrupt[0]} in {root} cannot be read ({decoded[corrupt[0]].reason}); repair or remove it, or "
            "give --data.skip_corrupt"
        )
    usable = [i for i, name in enumerate(listed) if name not in corrupt]
    if not usable:
        raise InputError(f"table {path} has no image that can be read; repair the images")
    readable, deep = to_8_bits([decoded[listed[i]] for i in usable])
    if options.size is None:
        check_sizes(root, readable)
    arrays = [image.pixels for image in readable if image.pixels is not None]
    images = Images(
        stacked(arrays, all(p.shape[2] == 1 for p in arrays)),
        torch.from_numpy(np.ascontiguousarray(target.y[usable])),
    )
    places = np.array([parts[rows[listed[i]][0]] for i in usable])
    train, val, test = (images.take(np.flatnonzero(places == part)) for part in ("train", "val", "test"))
    held_out = images.take(np.flatnonzero(places == "eval"))
    val, test = (val, held_out) if not len(test) else (val if len(val) else held_out, test)
    notes = [f"images by {path.name}: column {image}"]
    if not len(test) and len(val):
        val, test = test, val
    if not len(test):
        train, test = split_off_test(train)
        notes.append(f"test images: a fixed fifth{' of every class' * (train.y.ndim == 1)}")
    counts = Counter(remark for image in readable for remark in image.remarks)
    unnamed = sum(not file for file in files)
    notes += [f"left out: {unnamed} row{'s' * (unnamed > 1)} without an image"] if unnamed else []
    unlisted = len(decoded) - len(rows)
    notes += [f"left out: {unlisted} image{'s' * (unlisted > 1)} that the table does not name"] if unlisted else []
    notes += [note for note in (target.note, deep) if note]
    notes += [f"{counts[remark]} {text}" for remark, text in REMARKS.items() if counts[remark]]
    return Source(
        train, test, target.classes, tuple(corrupt), "; ".join(notes), val if len(val) else None,
        task=target.task, outputs=target.outputs, unit=target.unit,
    )  # fmt: skip


def _files(
    path: Path, columns: dict[str, Column], names: ImageNames, folder: str, settings: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return the column of file names, and the image that each row names; empty for none."""
    titles = choose(columns, settings["image"], str(path), "image")[:1] if "image" in settings else [*columns]
    matches = {
        title: [names.matches(cell, folder) if cell else [] for cell in columns[title].cells] for title in titles
    }
    title = max(titles, key=lambda t: sum(map(bool, matches[t])))
    if not any(matches[title]):
        raise InputError(
            f"table {path} names no image of the folder around it in "
            + (f"column {title!r}" if "image" in settings else f"its columns {', '.join(titles[:8])}")
            + "; put it beside the images, or give image=COLUMN"
        )
    for cell, hits in zip(columns[title].cells, matches[title], strict=True):
        if len(hits) > 1:
            raise InputError(
                f"{path} names {cell!r}, which may be {hits[0]} or {hits[1]}; write the folder into the table too"
            )
    return title, [hits[0] if hits else "" for hits in matches[title]]


def _label_columns(path: Path, others: Sequence[Column], settings: Mapping[str, str]) -> list[Column]:
    """Return the columns of targets: those named, one with the title of classes, or all others if they fit."""
    by_name = {column.name: column for column in others}
    if "label" in settings:
        return [by_name[name] for name in choose(by_name, settings["label"], str(path), "label")]
    titled = [c for c in others if re.sub("[^a-z]", "", c.name.lower()) in LABEL_COLUMNS]
    if len(titled) == 1 or len(others) == 1:
        return titled if len(titled) == 1 else [*others]
    if others and all(c.values and set(c.values) <= {"0", "1"} for c in others):
        return [*others]
    raise InputError(
        f"table {path} has the columns {', '.join(by_name) or 'of file names only'}; write "
        f"images:{path}:label=COLUMN, or several as label=a+b"
    )


def _joined(column: Column, rows: Sequence[Sequence[int]], settings: Mapping[str, str], path: Path) -> Column:
    """Return a column with one cell for each image; several rows of an image are joined as its labels."""
    separator = separator_of(column, settings) or "|"
    cells: list[str | None] = []
    for group in rows:
        texts = list(dict.fromkeys(cell for i in group if (cell := column.cells[i]) is not None))
        if len(texts) > 1 and column.numbers is not None and settings.get("task") != "multi-label":
            raise InputError(
                f"{path} has {column.name} {texts[0]} and {texts[1]} for one image; keep one, or give "
                "task=multi-label"
            )
        cells.append(separator.join(texts) if texts else None)
    return Column(column.name, tuple(cells))
