"""Targets from the columns of a table: classes, several labels per row, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from steppe.data.dataset import DataSet, Images, Samples, Task, Tensors
from steppe.data.sources.formats.columns import Column
from steppe.errors import InputError, unknown

MOST_WHOLE_NUMBERS = 20  # that are classes; a target of more is a number
FEWEST_ROWS = 3  # of each of them
_TASKS: dict[str, Task] = {t: t for t in ("classification", "multi-label", "ordinal", "regression")}
_SEPARATORS = {"space": " ", "comma": ",", "semicolon": ";", "bar": "|", "tab": "\t"}


@dataclass(frozen=True)
class Target:
    """Targets ``y`` of the ``rows`` (positions in the table) that have one.

    ``y`` is (N,) int64 for classes, (N, K) float32 for K labels or K numbers. ``note`` says what was decided.
    """

    task: Task
    y: np.ndarray
    rows: np.ndarray
    classes: tuple[str, ...] = ()
    outputs: int = 0
    unit: str = ""
    note: str = ""


def make_target(columns: Sequence[Column], options: Mapping[str, str], where: str) -> Target:
    """Return the target that one or several columns have.

    One column of texts has classes, or several labels per cell with a separator between them. One of numbers is a
    regression, or has classes if it has at most 20 whole numbers, each in 3 rows or more. Several columns are
    labels if all cells are 0 or 1 (classes, if each row has a single 1) or if they have texts, else targets of one
    regression. What has a ``unit`` is a regression. ``task`` decides otherwise.

    Raises InputError for columns that are not of the task, and for fewer than two classes.
    """
    task = options.get("task") or ("regression" if "unit" in options else _task(columns, options))
    if task not in _TASKS:
        raise unknown(f"task of {where}", task, _TASKS)
    if task == "classification":
        target = _classes(columns, where)
    elif task == "multi-label":
        target = _labels(columns, options, where)
    else:
        target = _numbers(columns, _TASKS[task], options.get("unit", ""), where)
    left_out = len(columns[0].cells) - len(target.rows)
    notes = [target.note] if target.note else []
    notes += [f"left out: {left_out} row{'s' * (left_out > 1)} without a target"] if left_out else []
    if not len(target.rows):
        raise InputError(f"{where} has no row with a value of {columns[0].name!r}; give another target")
    return replace(target, note="; ".join(notes))


def _task(columns: Sequence[Column], options: Mapping[str, str]) -> str:
    """Return the task that the columns' values suggest."""
    if "separator" in options:
        return "multi-label"
    if len(columns) > 1:
        if all(column.numbers is None for column in columns):
            return "multi-label"
        if not all(set(column.values) <= {"0", "1"} for column in columns):
            return "regression"
        ones = sum((np.array([cell == "1" for cell in column.cells]) for column in columns), start=np.array(0))
        return "classification" if (ones == 1).all() else "multi-label"
    column = columns[0]
    if column.numbers is None:
        return "multi-label" if separator_of(column, options) else "classification"
    numbers = column.numbers[~np.isnan(column.numbers)]
    counts = np.unique(numbers, return_counts=True)[1]
    is_class = (numbers == np.round(numbers)).all() and len(counts) <= MOST_WHOLE_NUMBERS
    return "classification" if is_class and counts.min() >= FEWEST_ROWS else "regression"


def separator_of(column: Column, options: Mapping[str, str]) -> str | None:
    """Return what divides several labels of a cell: the option, a bar, a semicolon, or a comma of few labels."""
    if text := options.get("separator"):
        return _SEPARATORS.get(text, text)
    for separator in "|;,":
        if any(separator in value for value in column.values):
            items = {item.strip() for value in column.values for item in value.split(separator)}
            if separator != "," or len(items) < len(column.values):
                return separator
    return None


def _classes(columns: Sequence[Column], where: str) -> Target:
    note = ""
    if len(columns) > 1:
        names = [column.name for column in columns]
        table = np.array([[cell == "1" for cell in column.cells] for column in columns])
        if not (table.sum(0) == 1).all():
            raise InputError(
                f"target of {where} is {len(columns)} columns, of which a row has no or several 1; give one "
                "column, or task=multi-label"
            )
        return Target("classification", table.argmax(0), np.arange(table.shape[1]), tuple(names), note="")
    (column,) = columns
    values = column.values
    if len(values) < 2:
        raise InputError(
            f"target {column.name!r} of {where} has {len(values)} value{'s' * (len(values) != 1)}; give a column "
            "with two classes or more"
        )
    rows = np.array([i for i, cell in enumerate(column.cells) if cell is not None])
    if column.numbers is not None:
        distinct = np.unique(column.numbers[rows])
        values = [f"{v:g}" for v in distinct]
        y = np.searchsorted(distinct, column.numbers[rows])
        note = f"{column.name} has {len(values)} numbers as classes; task=regression predicts the number"
    else:
        index = {value: i for i, value in enumerate(values)}
        y = np.array([index[cell] for cell in column.cells if cell is not None])
    return Target("classification", y.astype(np.int64), rows, tuple(values), note=note)


def _labels(columns: Sequence[Column], options: Mapping[str, str], where: str) -> Target:
    """Return one column of 0 and 1 for each label; an empty text is a row without labels."""
    if all(set(column.values) <= {"0", "1"} and column.values for column in columns):
        names = [column.name for column in columns]
        table = np.array([column.numbers for column in columns]).T
        rows = np.flatnonzero(~np.isnan(table).any(1))
        return Target("multi-label", table[rows].astype(np.float32), rows, tuple(names))
    items: list[set[str]] = [set() for _ in columns[0].cells]
    for column in columns:
        separator = separator_of(column, options)
        for i, cell in enumerate(column.cells):
            if cell is not None:
                items[i] |= {item.strip() for item in (cell.split(separator) if separator else [cell])} - {""}
    names = sorted(set().union(*items))
    if not names:
        raise InputError(f"target of {where} has no labels; give another column")
    index = {name: i for i, name in enumerate(names)}
    y = np.zeros((len(items), len(names)), np.float32)
    for i, labels in enumerate(items):
        y[i, [index[label] for label in labels]] = 1
    empty = sum(not labels for labels in items)
    note = f"{empty} row{'s' * (empty > 1)} without any label" if empty else ""
    return Target("multi-label", y, np.arange(len(items)), tuple(names), note=note)


def _numbers(columns: Sequence[Column], task: Task, unit: str, where: str) -> Target:
    for column in columns:
        if column.numbers is None:
            wrong = next((cell for cell in column.cells if cell is not None and not _is_number(cell)), None)
            raise InputError(
                f"target {column.name!r} of {where} has {wrong!r}, which is no number; give a column of numbers, "
                "or task=classification"
            )
    table = np.array([column.numbers for column in columns]).T
    if np.isinf(table).any():
        i, k = np.argwhere(np.isinf(table))[0]
        raise InputError(f"target {columns[k].name!r} of {where} is infinite in row {i + 1}; remove the row")
    rows = np.flatnonzero(~np.isnan(table).any(1))
    return Target(task, table[rows].astype(np.float32), rows, outputs=len(columns), unit=unit)


def _is_number(text: str) -> bool:
    return Column("", (text,)).numbers is not None


def standardise_targets(data: DataSet) -> DataSet:
    """Return a regression's data with targets of mean 0 and standard deviation 1 over the training part.

    Several targets without a unit are reported in standard deviations, since their units may differ.
    """
    if data.task not in ("regression", "ordinal"):
        return data
    assert data.train.y is not None
    y = data.train.y.double()
    mean, std = y.mean(0), y.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))

    def scaled(part: Samples) -> Samples:
        assert part.y is not None
        y = ((part.y.double() - mean) / std).float()
        return replace(part, y=y) if isinstance(part, Images) else Tensors(part.x, y)

    about = {"mean": mean.tolist(), "std": std.tolist(), "unit": data.unit}
    data = data.with_parts(scaled, preparation={**data.preparation, "target": about})
    if y.shape[1] > 1 and not data.unit:
        return replace(data, unit="standard deviations")
    return replace(data, target_mean=tuple(about["mean"]), target_std=tuple(about["std"]))
