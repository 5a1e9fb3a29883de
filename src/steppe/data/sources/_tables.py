"""Parts and classes of images from the tables and lists beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from steppe.data.sources._part_names import part_of
from steppe.data.sources._table_files import ImageNames, Table
from steppe.errors import InputError

Labels = dict[str, tuple[str | None, str]]  # part, if the table names it, and class of an image

LABEL_COLUMNS = [
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
_TRAINING_COLUMNS = ["istrain", "istraining", "istrainingimage", "istrainingimg"]
# of data sets for detection, captions and search
_OTHER_COLUMNS = [
    "text",
    "caption",
    "captions",
    "prompt",
    "description",
    "url",
    "bbox",
    "filename",
    "path",
    "comment",
]
_CODES = {"0": "train", "1": "val", "2": "test"}  # of CelebA's partitions


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table have the files, the classes and the parts; None if none has.

    ``is_titled`` if the column of classes is named so, and not merely the only one.
    """

    name: int
    label: int | None
    part: int | None
    is_titled: bool = False


@dataclass(frozen=True)
class Row:
    """An image that a table names, with the part and class that it has there, if any."""

    image: str
    part: str | None
    label: str | None


def read_labels(
    where: str, tables: Sequence[Table], names: ImageNames, images: Mapping[str, str | None]
) -> tuple[Labels, dict[str, int]]:
    """Return the part and class of those ``images`` that the tables label, and the other rows of each table used.

    ``images`` has the part that each image's folder names, if any. A table's part is that of its name or of a
    column such as ``split``; predictions and sample submissions are not read. File names may lack folder and
    ending.

    Raises InputError if labels differ, and if no table is clear: one has several columns that may be the labels,
    or a name that fits several images.
    """
    labels: Labels = {}
    unused: dict[str, int] = {}
    sources: dict[str, str] = {}
    unclear = []
    for table in tables:
        if table.has_no_labels:
            continue
        scope = {name for name, part in images.items() if table.part is None or part in (None, table.part)}
        is_training = table.part in (None, "train") and any(images[name] in (None, "train") for name in scope)
        try:
            _, rows = table_rows(where, table, names, scope, is_training=is_training)
        except InputError as error:
            unclear.append(error)
            continue
        labelled = [row for row in rows if row.label]
        for row in labelled:
            assert row.label is not None
            value = row.part or table.part or images[row.image], row.label
            other = labels.get(row.image, value)
            if other[1] != row.label or len({other[0], value[0]} - {None}) > 1:
                old, new = (other[1], row.label) if other[1] != row.label else (other[0], value[0])
                first = sources[row.image] if sources[row.image] != table.name else "another row"
                raise InputError(
                    f"{table.name} of {where} labels {row.image} as {new!r}, and {first} as {old!r}; keep one of "
                    "them"
                )
            sources.setdefault(row.image, table.name)
            labels[row.image] = (other[0] or value[0], row.label)
        if labelled:
            unused[table.name] = len(table.rows) + table.others - len(labelled)
    if unclear and not labels:
        raise unclear[0]
    return labels, unused


def read_parts(
    where: str, tables: Sequence[Table], names: ImageNames, classes: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the part of each image of class folders by tables and lists such as train.txt, and their names.

    ``classes`` has the class of each image. Nothing is returned unless the lists name half of the images, put none
    into two parts, and give images of every class to ``train`` and to another part.
    """
    parts: dict[str, str] = {}
    used = []
    for table in tables:
        for row in _clear_rows(where, table, names, classes)[1]:
            if part := row.part or table.part:
                if parts.setdefault(row.image, part) != part:
                    return {}, []
                used += [] if table.name in used else [table.name]
    by_part: dict[str, set[str]] = {}
    for image, part in parts.items():
        by_part.setdefault(part, set()).add(classes[image])
    is_complete = len(set(map(frozenset, by_part.values()))) == 1 and len(by_part.get("train", ())) > 1
    is_complete = is_complete and by_part["train"] == set(classes.values()) and 2 * len(parts) >= len(classes)
    return (parts, used) if is_complete and len(by_part) > 1 else ({}, [])


def contradiction(
    where: str, tables: Sequence[Table], names: ImageNames, classes: Mapping[str, str]
) -> tuple[Table, Row] | None:
    """Return a table that divides the images of class folders otherwise than the folders, and a row that does.

    ``classes`` has the class of each training image. Only a list of the training images with one class for each
    can contradict: it names half of them, and its classes are in a column called so, or are words.
    """
    for table in tables:
        if table.part not in (None, "train"):
            continue
        columns, rows = _clear_rows(where, table, names, classes)
        labels = {row.image: row for row in rows if row.label}
        pairs = {(classes[image], row.label) for image, row in labels.items()}
        if columns is None or 2 * len(labels) < len(classes):
            continue
        if len({(row.image, row.label) for row in rows if row.label}) > len(labels):
            continue  # objects in the images, or several answers
        if not columns.is_titled and all(_is_number(label) for _, label in pairs):
            continue
        if not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
            differing = (row for image, row in labels.items() if row.label != classes[image])
            return table, next(differing)
    return None


def _clear_rows(
    where: str, table: Table, names: ImageNames, images: Collection[str]
) -> tuple[_Columns | None, list[Row]]:
    """Return what `table_rows` does, nothing for a table that is not clear or has predictions."""
    if table.has_no_labels:
        return None, []
    try:
        return table_rows(where, table, names, images, is_training=True)
    except InputError:
        return None, []


def table_rows(
    where: str, table: Table, names: ImageNames, images: Collection[str], *, is_training: bool
) -> tuple[_Columns | None, list[Row]]:
    """Return the columns of a table and its rows that name one of the ``images``.

    Only a table of training images may give its labels in a column of any name.

    Raises InputError if several columns may be the labels, or a name fits several images.
    """
    cells = [{row[c] for row in table.rows} for c in range(len(table.header))]
    matches = [
        {cell: hits for cell in column if (hits := names.matches(cell, table.folder, images))} for column in cells
    ]
    if not any(matches):
        return None, []
    name = max(range(len(matches)), key=lambda c: len(matches[c]))
    table = _with_one_hot(table, name)
    columns = _columns(where, table, name, is_training)
    rows = []
    for row in table.rows:
        hits = matches[name].get(row[name], [])
        if len(hits) > 1:
            raise InputError(
                f"{table.name} of {where} names {row[name]!r}, which may be {hits[0]} or {hits[1]}; remove one, "
                "or write the folder into the table too"
            )
        if hits:
            part = None if columns.part is None else _part(table.header[columns.part], row[columns.part])
            rows.append(Row(hits[0], part, None if columns.label is None else row[columns.label].strip() or None))
    return columns, rows


def _columns(where: str, table: Table, name: int, is_training: bool) -> _Columns:
    """Return the columns of files, classes and parts; raises InputError if several may be the classes."""
    titles = {_title(title): c for c, title in enumerate(table.header) if c != name}
    titled = _distinct(table.rows, [c for title, c in titles.items() if title in LABEL_COLUMNS])
    about_parts = [titles[title] for title in (*_PART_COLUMNS, *_TRAINING_COLUMNS) if title in titles]
    part = next((c for c in about_parts if _is_part(table.header[c], [row[c] for row in table.rows])), None)
    rest = [c for c in range(len(table.header)) if c not in (name, part)]
    if len(titled) == 1:
        values = [row[titled[0]] for row in table.rows]
        is_index = table.is_text and len(values) > 2 and len(set(values)) == len(values)
        return _Columns(name, None if is_index and all(map(_is_number, values)) else titled[0], part, not is_index)
    untitled = [c for c in rest if c not in about_parts and _title(table.header[c]) not in _OTHER_COLUMNS]
    if not is_training or not untitled:
        return _Columns(name, None, part)
    if len(titled) > 1 or len(untitled) > 1 or _is_measure([row[untitled[0]] for row in table.rows]):
        candidates = ", ".join(table.header[c] for c in titled)
        keep = f"keep one of {candidates}" if titled else "call one of them 'label'"
        raise InputError(
            f"{table.name} of {where} has the columns {', '.join(table.header)}, and which has the classes is not "
            f"clear; {keep}"
        )
    values = [row[untitled[0]] for row in table.rows]
    is_class = len(values) < 3 or len(set(values)) < len(values)
    return _Columns(name, untitled[0] if is_class else None, part)


def _with_one_hot(table: Table, name: int) -> Table:
    """Return a table with a column of classes in place of one column of 0 and 1 for each class."""
    columns = [
        c
        for c, title in enumerate(table.header)
        if c != name and _title(title) not in (*_PART_COLUMNS, *_TRAINING_COLUMNS)
    ]
    if any(_title(table.header[c]) in LABEL_COLUMNS for c in columns) or not _is_one_hot(table.rows, columns):
        return table
    rows = [[*row, next(table.header[c].strip() for c in columns if float(row[c]) == 1)] for row in table.rows]
    return Table(table.name, [*table.header, "label"], rows, table.others, table.is_text)


def _is_one_hot(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> bool:
    """Return whether each row has a single 1, and else 0, in the columns: one for each class."""
    try:
        values = [sorted(float(row[c]) for c in columns) for row in rows]
    except ValueError:
        return False
    return len(columns) > 1 and all(row == [0.0] * (len(columns) - 1) + [1.0] for row in values)


def _distinct(rows: Sequence[Sequence[str]], columns: list[int]) -> list[int]:
    """Return one of the columns if all divide the rows into the same classes (names rather than numbers)."""
    entries = [{row[c] for row in rows} for c in columns]
    if len(columns) < 2 or len({tuple(row[c] for c in columns) for row in rows}) != min(map(len, entries)):
        return columns
    if len({len(values) for values in entries}) > 1:
        return columns
    return [min(columns, key=lambda c: all(row[c].strip().isdigit() for row in rows))]


def _part(title: str, value: str) -> str | None:
    if _title(title) in _TRAINING_COLUMNS:
        return {"1": "train", "true": "train", "yes": "train", "0": "test", "false": "test", "no": "test"}.get(
            value.strip().lower()
        )
    token = part_of(value)
    return token[0] if token else _CODES.get(value.strip())


def _is_part(title: str, values: Iterable[str]) -> bool:
    """Return whether a column has parts in every row: by words, or 0, 1 and 2 for train, val and test."""
    distinct = {value.strip() for value in values}
    is_coded = bool(distinct & _CODES.keys()) and _title(title) not in _TRAINING_COLUMNS
    return all(_part(title, value) for value in distinct) and (not is_coded or distinct == _CODES.keys())


def _is_measure(values: Iterable[str]) -> bool:
    """Return whether values are numbers that are not all whole: a measurement, no class."""
    cells = [value for value in values if value.strip()]
    return all(map(_is_number, cells)) and any(not float(cell).is_integer() for cell in cells)


def _is_number(text: str | None) -> bool:
    try:
        return float(text or "") - float(text or "") == 0
    except ValueError:
        return False


def _title(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())
