"""Tables with a target column: features standardised or one-hot, with what the training rows decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe.data.dataset import DataSet, Source, Tensors
from steppe.data.sources._part_names import part_of
from steppe.data.sources.formats.columns import ENDINGS, Column, choose, fingerprint, parts_of, read_columns
from steppe.data.sources.formats.targets import Target, make_target, standardise_targets
from steppe.data.splits import split_off_test
from steppe.errors import InputError

MOST_CATEGORIES = 100


@dataclass(frozen=True)
class Feature:
    """A column that is an input: numbers, or categories by name. ``raw`` (N,) float64 are numbers or codes.

    Missing values are NaN.
    """

    name: str
    raw: np.ndarray
    categories: tuple[str, ...] = ()


def load(path: Path, options: Mapping[str, str]) -> Source:
    """Return the rows of a table, or of a folder with one table per part (``train.csv``, ``test.csv``).

    ``target`` names the column to predict, or several (``a+b``, ``tag_*``); see `make_target`. ``drop`` names
    columns that are no inputs, ``categories`` columns of numbers that are categories, ``split`` the column that
    has each row's part. Without test rows a fixed fifth is taken, of every class if there are classes.

    Texts are categories: one input of 0 or 1 for each that occurs in training, and one for missing values; of rows
    that a split holds out for validation too, so that all splits have the same inputs. Texts
    with more than 100 values, or of which no two are equal, are left out, as are columns that count the rows.
    Numbers are standardised with mean and deviation of the training rows; a missing one becomes their mean, with a
    further input that is 1 where it is missing.

    Raises InputError for a missing or damaged file, columns that do not exist, and a target that does not fit.
    """
    where = str(path)
    columns, parts, notes = _read(path, options)
    if "target" not in options:
        raise InputError(
            f"table {path} needs the column to predict; write table:{path}:target=COLUMN, one of "
            f"{', '.join(list(columns)[:12])}{', ...' if len(columns) > 12 else ''}"
        )
    names = choose(columns, options["target"], where, "target")
    dropped = choose(columns, options["drop"], where, "drop") if "drop" in options else []
    as_categories = choose(columns, options["categories"], where, "categories") if "categories" in options else []
    target = make_target([columns[n] for n in names], options, where)
    features, left_out = [], []
    for name, column in columns.items():
        if name not in (*names, *dropped):
            feature = _feature(column.take(target.rows.tolist()), name in as_categories, where)
            features += [feature] if isinstance(feature, Feature) else []
            left_out += [feature] if isinstance(feature, str) else []
    if not features:
        raise InputError(f"table {path} has no columns to predict {options['target']} from; give other columns")
    notes += [target.note] if target.note else []
    notes += [f"left out: {', '.join(left_out)}"] if left_out else []
    inputs = [part for f in features for part in ([f.name, *f.categories], f.raw)]
    places = np.array(parts)[target.rows]
    mark = fingerprint(*inputs, [target.task, *target.classes], target.y, places.tolist())
    return table_source(features, target, places, names, notes, mark)


def table_source(
    features: list[Feature], target: Target, parts: np.ndarray, names: list[str], notes: list[str], mark: str = ""
) -> Source:
    """Return the source of these features and targets; ``parts`` (N,) has the part of each row."""
    everything = Tensors(
        torch.from_numpy(np.stack([f.raw for f in features], 1)), torch.from_numpy(np.ascontiguousarray(target.y))
    )
    train, val, test = (everything.take(np.flatnonzero(parts == part)) for part in ("train", "val", "test"))
    if not len(test) and len(val):
        val, test = test, val
        notes = ["test rows: those of val", *notes]
    if not len(test):
        train, test = split_off_test(train)
        notes = [
            f"test rows: a fixed fifth{' of every class' * (train.y is not None and train.y.ndim == 1)}",
            *notes,
        ]

    all_rows = train.x
    assert isinstance(all_rows, Tensor)

    def prepare(data: DataSet) -> DataSet:
        assert isinstance(data.train.x, Tensor)
        inputs = inputs_of(features, data.train.x, all_rows)
        public = [{key: value for key, value in one.items() if key != "codes"} for one in inputs]
        about = {"inputs": public, "predicts": names}
        encoded = data.with_parts(lambda part: Tensors(encode(part.x, inputs), part.y), preparation=about)
        return standardise_targets(encoded)

    return Source(
        train, test, target.classes, note="; ".join(notes), val=val if len(val) else None, fingerprint=mark,
        task=target.task, outputs=target.outputs, unit=target.unit, prepare=prepare,
    )  # fmt: skip


def encode(raw: Any, inputs: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return the inputs (N, F) float32 of raw values (N, columns) float64, made as ``inputs`` says per column.

    A column becomes (v - mean) / std, 0 where missing; or one input of 0 or 1 for each of its ``codes``; and
    1 where it is missing, else 0, if training rows lack it.
    """
    columns: list[Tensor] = []
    for v, about in zip(raw.T, inputs, strict=True):
        if "mean" in about:
            columns.append(((v - about["mean"]) / about["std"]).nan_to_num(0.0))
        columns += [(v == code).double() for code in about.get("codes", ())]
        columns += [v.isnan().double()] if about["missing"] else []
    return torch.stack(columns, 1).float()


def inputs_of(features: Sequence[Feature], raw: Tensor, all_rows: Tensor) -> list[dict[str, Any]]:
    """Return for each feature how `encode` makes its inputs.

    Means and deviations are those of the training rows ``raw`` (N, columns); which categories there are, and what
    may be missing, says ``all_rows`` (M, columns), the rows of which some are held out for validation.
    """
    inputs = []
    for feature, v, of_all in zip(features, raw.T, all_rows.T, strict=True):
        about: dict[str, Any] = {"column": feature.name, "missing": bool(of_all.isnan().any())}
        present = v[~v.isnan()]
        if feature.categories:
            codes = sorted({int(code) for code in of_all[~of_all.isnan()].tolist()})
            about |= {"codes": codes, "values": [feature.categories[code] for code in codes]}
        elif len(present):
            std = float(present.std(correction=0))
            about |= {"mean": float(present.mean()), "std": std if std > 0 else 1.0}
        inputs.append(about)
    return inputs


def _feature(column: Column, is_category: bool, where: str) -> Feature | str | None:
    """Return a column as input, or the text that says why it is left out."""
    count = len(column.cells)
    if column.numbers is not None and not is_category:
        if np.isinf(column.numbers).any():
            row = int(np.flatnonzero(np.isinf(column.numbers))[0]) + 1
            raise InputError(
                f"column {column.name!r} of {where} is infinite in row {row}; replace it or drop the column"
            )
        is_unnamed = column.name in ("column 1", "Unnamed: 0", "index")
        if is_unnamed and count > 2 and (np.diff(column.numbers) == 1).all():
            return f"column {column.name!r}, which counts the rows"
        return Feature(column.name, column.numbers)
    values = column.values
    if not values:
        return f"column {column.name!r}, which is empty"
    if not is_category and (len(values) > MOST_CATEGORIES or len(values) == count > 2):
        return f"column {column.name!r} (text, {len(values)} different values)"
    index = {value: float(i) for i, value in enumerate(values)}
    return Feature(
        column.name, np.array([np.nan if cell is None else index[cell] for cell in column.cells]), tuple(values)
    )


def _read(path: Path, options: Mapping[str, str]) -> tuple[dict[str, Column], list[str], list[str]]:
    """Return the columns, the part of each row, and notes."""
    if not path.is_dir():
        columns = read_columns(path)
        title, parts = parts_of(columns, options.get("split"), str(path))
        if title is None:
            return columns, parts, []
        del columns[title]
        return columns, _without_eval(parts), [f"parts: the column {title}"]
    tables = [
        (file, token[0], read_columns(file))
        for entry in sorted(path.iterdir())
        if (token := part_of(entry.name.partition(".")[0]))
        for file in (sorted(entry.iterdir()) if entry.is_dir() else [entry])
        if file.name.lower().endswith(ENDINGS)
    ]
    training = next((columns for _, part, columns in tables if part == "train"), None)
    if training is None:
        raise InputError(
            f"folder {path} has no table train{ENDINGS[0]}, nor tables in train/; give one, or a table"
        )
    notes: list[str] = []
    rows: dict[str, list[str | None]] = {name: [] for name in training}
    parts = []
    for file, part, columns in tables:
        if lacking := [name for name in training if name not in columns]:
            notes.append(f"left out: {file.name}, without a column {lacking[0]}")
            continue
        for name, cells in rows.items():
            cells += columns[name].cells
        parts += [part] * len(columns[next(iter(training))].cells)
    return {name: Column(name, tuple(cells)) for name, cells in rows.items()}, _without_eval(parts), notes


def _without_eval(parts: list[str]) -> list[str]:
    """Return parts in which ``eval`` is the one of val and test that there is none of."""
    other = "val" if "test" in parts else "test"
    return [other if part == "eval" else part for part in parts]
