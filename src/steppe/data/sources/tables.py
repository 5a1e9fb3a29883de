"""Labels of images from a table beside them: a column of file names and one of labels."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from steppe.data.sources.image_files import IMAGES
from steppe.data.sources.parts import part_of
from steppe.errors import InputError

Labels = dict[str, tuple[str | None, str]]  # part, if the table names it, and class of an image

_LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "classname",
    "category",
    "target",
    "species",
    "breed",
    "diagnosis",
    "dx",
)
_PART_COLUMNS = ("split", "subset", "partition", "dataset", "part", "usage", "set")


def read_labels(
    where: str, tables: Mapping[str, bytes], images: Mapping[str, str | None]
) -> tuple[Labels, list[str]]:
    """Return the part and class of those ``images`` that the tables label, and notes on the tables' other rows.

    ``images`` has the part that each image's folder names, if any. A table's part is that of its name or of a
    column such as ``split``; sample submissions are not read. File names may lack folder and ending.

    Raises InputError if a table has no clear column of labels, a name fits several images, or labels differ.
    """
    labels: Labels = {}
    notes = []
    for table in sorted(tables):
        if "submission" in table.lower():
            notes.append(f"the table {table}")
            continue
        words = part_of(PurePosixPath(table).stem)
        own = words[0] if words else None
        scope = [name for name, part in images.items() if own is None or part in (None, own)]
        is_training = own in (None, "train") and any(images[name] in (None, "train") for name in scope)
        rows, unused = _rows(f"{table} of {where}", tables[table], scope, is_training)
        for image, part, label in rows:
            part = part or own or images[image]
            if labels.setdefault(image, (part, label)) != (part, label):
                raise InputError(
                    f"{table} of {where} labels {image} as {label!r}, and another row as {labels[image][1]!r}; "
                    "keep one of them"
                )
        if unused or not rows:
            notes.append(f"{unused} rows of {table} without an image or a label" if rows else f"the table {table}")
    return labels, notes


def _rows(
    where: str, content: bytes, images: Iterable[str], is_training: bool
) -> tuple[list[tuple[str, str | None, str]], int]:
    """Return (image, part, label) of each row that names an image and has a label, and the number of others.

    Only a table of training images may give its labels in a column of any name.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    try:
        header, *table = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except (csv.Error, ValueError):
        return [], 0
    table = [row for row in table if len(row) == len(header)]
    keys = _keys(images)
    hits = [len({_key(row[c]) for row in table} & keys.keys()) for c in range(len(header))]
    if not any(hits):
        return [], 0
    name = hits.index(max(hits))
    columns = {re.sub("[^a-z]", "", title.lower()): c for c, title in enumerate(header) if c != name}
    titles = [title for title in columns if title in _LABEL_COLUMNS]
    named = (columns[title] for title in _PART_COLUMNS if title in columns)
    part = next((c for c in named if all(part_of(row[c]) for row in table)), None)
    rest = [c for c in columns.values() if c != part]
    if not rest or (not is_training and len(titles) != 1):
        return [], 0
    if len(titles) != 1 and len(rest) > 1:
        raise InputError(
            f"{where} has the columns {', '.join(header)}; keep two, {header[name]!r} for the files and 'label' "
            "for their classes"
        )
    label = columns[titles[0]] if len(titles) == 1 else rest[0]
    rows = []
    for row in table:
        matches = keys.get(_key(row[name]), [])
        if len(matches) > 1:
            raise InputError(
                f"{where} names {row[name]!r}, which may be {matches[0]} or {matches[1]}; write the folder "
                "into it too"
            )
        words = part_of(row[part]) if part is not None else None
        if matches and row[label].strip():
            rows.append((matches[0], words[0] if words else None, row[label].strip()))
    return rows, len(table) - len(rows)


def _key(text: str) -> str:
    text = text.strip().replace("\\", "/").removeprefix("./")
    path = PurePosixPath(text)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGES else text


def _keys(images: Iterable[str]) -> dict[str, list[str]]:
    """Return the images that each name may mean: a file name without its ending, with any of its folders."""
    keys: dict[str, list[str]] = defaultdict(list)
    for image in images:
        parts = PurePosixPath(_key(image)).parts
        for i in range(len(parts)):
            keys["/".join(parts[i:])].append(image)
    return keys
