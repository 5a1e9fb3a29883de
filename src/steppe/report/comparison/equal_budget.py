"""Accuracy at equal budgets, read off the curves of runs as they were made: epochs, gradients or seconds."""

from __future__ import annotations

import csv as _csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from steppe.records import Comparison, Record
from steppe.report.comparison.summary import BASELINE, Spread, chosen, controls_of, groups, paired, spread
from steppe.report.formatting import inert
from steppe.report.statistics import Difference

Axis = Literal["epochs", "gradients", "seconds"]
Reading = float | None


@dataclass(frozen=True)
class Reached:
    """What the finished runs of one method had reached when a budget was spent.

    Attributes:
        method: Label of the method.
        accuracy: Validation accuracy in percent, over seeds; None if not one epoch fits the budget.
        epochs: Epochs trained by then, the mean over seeds.
        difference: ``accuracy`` minus plain's, in percentage points, paired by seed.
        controls: The same difference to each control of the method that this comparison has.
    """

    method: str
    accuracy: Spread | None
    epochs: float | None
    difference: Difference | None = None
    controls: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class EqualBudget:
    """The largest budget that every finished run reached, in the unit of ``axis``, and who was where by then."""

    axis: Axis
    amount: float
    reached: list[Reached]


def budgets(comparison: Comparison, group: tuple[str, str]) -> list[EqualBudget]:
    """Return one budget per axis, as far as records have it, for one data set and network.

    Between the two epochs on either side of the budget B a straight line is drawn: for costs c and accuracies a,
    ``a(B) = a_i + (a_j - a_i) (B - c_i) / (c_j - c_i)`` with ``c_i <= B < c_j``. Test images have no part in it:
    they are looked at when a run has ended. No run was planned for B: its learning rate followed a schedule laid
    out for the whole run.
    """
    return [b for axis in get_args(Axis) if (b := _budget(comparison, group, axis))]


def csv(comparison: Comparison) -> str:
    """Return one line per budget and method, for all data sets and networks, with unrounded numbers.

    Percent and percentage points; the budget in the unit of its axis.
    """
    file = io.StringIO()
    writer = _csv.writer(file, lineterminator="\n")
    heads = ["dataset", "model", "equal", "budget", "method", "n", "val_mean", "val_std", "epochs"]
    writer.writerow([*heads, *(f"minus_plain{part}" for part in ("", "_low", "_high", "_n", "_p"))])
    for group in groups(comparison):
        for budget in budgets(comparison, group):
            for r in budget.reached:
                names = [*map(inert, group), budget.axis, budget.amount, inert(r.method)]
                reached = [r.accuracy.n, r.accuracy.mean, r.accuracy.std] if r.accuracy else [0, None, None]
                d = r.difference
                against = [d.mean, d.low, d.high, d.n, d.p] if d else [None] * 5
                writer.writerow([*names, *reached, r.epochs, *against])
    return file.getvalue()


def _budget(comparison: Comparison, group: tuple[str, str], axis: Axis) -> EqualBudget | None:
    runs = {m: [r for r in chosen(comparison, group, m) if r.status == "ok"] for m in comparison.methods}
    runs = {method: records for method, records in runs.items() if records}
    ends = [_cost(r, axis)[-1] for records in runs.values() for r in records if r.metrics]
    known = [end for end in ends if end is not None]
    if not known:
        return None
    amount = min(known)
    accuracy = {m: _seeds(records, axis, amount, _accuracy) for m, records in runs.items()}
    epochs = {m: _seeds(records, axis, amount, lambda r: _cost(r, "epochs")) for m, records in runs.items()}
    reached = []
    for method, found in accuracy.items():
        trained = spread(epochs[method].values())
        against = {c: accuracy[c] for c in controls_of(comparison, method) if c in accuracy}
        reached.append(
            Reached(
                method,
                spread(found.values()),
                trained.mean if trained else None,
                None if method == BASELINE else paired(found, accuracy.get(BASELINE, {})),
                {c: difference for c, other in against.items() if (difference := paired(found, other))},
            )
        )
    return EqualBudget(axis, amount, reached)


def _seeds(
    records: list[Record], axis: Axis, amount: float, values: Callable[[Record], Sequence[Reading]]
) -> Mapping[int, Reading]:
    return {r.seed: read_off(_cost(r, axis), values(r), amount) for r in records}


def _cost(record: Record, axis: Axis) -> list[Reading]:
    """Return what a run had spent after each of its epochs."""
    if axis == "seconds":
        spent = [line.get("seconds") for line in record.timing[: len(record.metrics)]]
        return spent + [None] * (len(record.metrics) - len(spent))
    return [line.get("epoch" if axis == "epochs" else "gradients") for line in record.metrics]


def _accuracy(record: Record) -> list[Reading]:
    found = [line.get("val_accuracy") for line in record.metrics]
    return [None if a is None else 100 * a for a in found]


def read_off(x: Sequence[Reading], y: Sequence[Reading], at: float) -> Reading:
    """Return the height at ``at`` of the line through the points that are known; None before the first.

    ``x`` rises. After the last point its height is returned.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    before = [p for p in points if p[0] <= at]
    after = [p for p in points if p[0] > at]
    if not before:
        return None
    (x0, y0) = before[-1]
    if not after or x0 == at:
        return y0
    (x1, y1) = after[0]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
