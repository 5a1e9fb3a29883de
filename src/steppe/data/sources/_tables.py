"""Labels of images from a table beside them, and the words that folders and tables have for parts."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from steppe.data.sources.image_files import IMAGES
from steppe.errors import InputError

Labels = dict[str, tuple[str | None, str]]  # part, if the table names it, and class of an image

_LABEL_COLUMNS = [
    "label",
    "labels",
    "class",
    "classname",
    "classid",
    "category",
    "target",
    "species",
    "breed",
    "diagnosis",
    "dx",
]
_PART_COLUMNS = ["split", "subset", "partition", "dataset", "part", "usage", "set"]
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
_FILLERS = (
    "set",
    "data",
    "dataset",
    "images",
    "image",
    "imgs",
    "img",
    "labels",
    "label",
    "folder",
    "split",
    "pictures",
)


def part_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return 'train', 'val', 'test' or 'eval', and the other words of a name; None if it names no part.

    Capitals, digits, and words such as set and images do not count: ``Training Set``, ``trainset`` and
    ``train_images`` are ('train', ()), ``seg_train`` is ('train', ('seg',)).
    """
    parts, rest = [], []
    for token in re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()):
        stem = next((token.removesuffix(f) for f in _FILLERS if token.removesuffix(f) in _WORDS), token)
        if stem in _WORDS:
            parts.append(_WORDS[stem])
        elif token not in _FILLERS:
            rest.append(token)
    return (parts[0], tuple(rest)) if len(parts) == 1 else None


def read_labels(
    where: str, tables: Mapping[str, bytes], images: Mapping[str, str | None]
) -> tuple[Labels, list[str]]:
    """Return the part and class of those ``images`` that the tables label, and notes on the tables' other rows.

    ``images`` has the part that each image's folder names, if any. A table's part is that of its name or of a
    column such as ``split``; sample submissions are not read. File names may lack folder and ending.

    Raises InputError if labels differ, and if no table is clear: one has several columns that may be the labels,
    or a name that fits several images.
    """
    labels: Labels = {}
    notes, unclear = [], []
    for table in sorted(tables):
        if "submission" in table.lower():
            notes.append(f"the table {table}")
            continue
        token = part_of(PurePosixPath(table).stem)
        own = token[0] if token else None
        scope = [name for name, part in images.items() if own is None or part in (None, own)]
        is_training = own in (None, "train") and any(images[name] in (None, "train") for name in scope)
        try:
            rows, unused = _rows(f"{table} of {where}", tables[table], scope, is_training)
        except InputError as error:
            rows, unused = [], 0
            unclear.append(error)
        for image, part, label in rows:
            part = part or own or images[image]
            if labels.setdefault(image, (part, label)) != (part, label):
                raise InputError(
                    f"{table} of {where} labels {image} as {label!r}, and another row as {labels[image][1]!r}; "
                    "keep one of them"
                )
        if unused or not rows:
            few = f"{unused} row{'s' * (unused > 1)} of {table} without an image or a label"
            notes.append(few if rows else f"the table {table}")
    if unclear and not labels:
        raise unclear[0]
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
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        header, *lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except (csv.Error, ValueError):
        return [], 0
    table = [row for row in lines if len(row) == len(header)]
    keys = _keys(images)
    hits = [len({_key(row[c]) for row in table} & keys.keys()) for c in range(len(header))]
    if not any(hits):
        return [], 0
    name = hits.index(max(hits))
    columns = {re.sub("[^a-z]", "", title.lower()): c for c, title in enumerate(header) if c != name}
    titled = _distinct(table, [c for title, c in columns.items() if title in _LABEL_COLUMNS])
    named = (columns[title] for title in _PART_COLUMNS if title in columns)
    part = next((c for c in named if all(part_of(row[c]) for row in table)), None)
    rest = [c for c in range(len(header)) if c not in (name, part)]
    if len(titled) != 1 and _is_one_hot(table, rest):
        header = [*header, "label"]
        table = [[*row, next(header[c] for c in rest if float(row[c]) == 1)] for row in table]
        titled = [len(header) - 1]
    if not rest or (not is_training and len(titled) != 1):
        return [], 0
    if len(titled) != 1 and len(rest) > 1:
        raise InputError(
            f"{where} has the columns {', '.join(header)}; keep two, {header[name]!r} for the files and 'label' "
            "for their classes"
        )
    label = titled[0] if len(titled) == 1 else rest[0]
    rows = []
    for row in table:
        matches = keys.get(_key(row[name]), [])
        if len(matches) > 1:
            raise InputError(
                f"{where} names {row[name]!r}, which may be {matches[0]} or {matches[1]}; remove one, or "
                "write the folder into the table too"
            )
        token = part_of(row[part]) if part is not None else None
        if matches and row[label].strip():
            rows.append((matches[0], token[0] if token else None, row[label].strip()))
    return rows, len(lines) - len(rows)


def _distinct(table: Sequence[Sequence[str]], columns: list[int]) -> list[int]:
    """Return one of the columns if all divide the rows into the same classes (names rather than numbers)."""
    entries = [{row[c] for row in table} for c in columns]
    if len(columns) < 2 or len({tuple(row[c] for c in columns) for row in table}) != min(map(len, entries)):
        return columns
    if len({len(values) for values in entries}) > 1:
        return columns
    return [min(columns, key=lambda c: all(row[c].strip().isdigit() for row in table))]


def _is_one_hot(table: Sequence[Sequence[str]], columns: Sequence[int]) -> bool:
    """Return whether each row has a single 1, and else 0, in the columns: one for each class."""
    try:
        values = [sorted(float(row[c]) for c in columns) for row in table]
    except ValueError:
        return False
    return len(columns) > 1 and all(row == [0.0] * (len(columns) - 1) + [1.0] for row in values)


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
