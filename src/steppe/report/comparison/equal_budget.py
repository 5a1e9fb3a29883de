"""The validation metric at equal epochs, gradient evaluations or seconds, interpolated on the runs' curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from steppe.records import Comparison
from steppe.report.comparison.curves import spent, values
from steppe.report.comparison.summary import (
    BASELINE,
    Spread,
    controls_of,
    groups,
    metric_of,
    paired,
    runs_of,
    spread,
)
from steppe.report.formatting import csv_text, inert
from steppe.report.metric_text import csv_cells, csv_heads
from steppe.report.statistics import Difference

Axis = Literal["epochs", "gradients", "seconds"]


@dataclass(frozen=True)
class BudgetRow:
    """Where the finished runs of one method were when the budget was spent.

    Attributes:
        method: Label of the method.
        value: Validation value of the metric (accuracy: in percent), over seeds; None if the budget is less than
            one epoch.
        epochs: Epochs trained by then, the mean over seeds.
        difference: ``value`` minus plain's (accuracy: in percentage points), paired by seed.
        controls: The same difference to each control of the method that this comparison has, plain excepted.
    """

    method: str
    value: Spread | None
    epochs: float | None
    difference: Difference | None = None
    controls: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class EqualBudget:
    """The largest budget that every finished run reached, in the unit of ``axis``, and a row per method."""

    axis: Axis
    amount: float
    rows: list[BudgetRow]


def budgets(comparison: Comparison, group: tuple[str, str]) -> list[EqualBudget]:
    """Return one budget per axis that the records have, for one data set and network.

    The budget B is the smallest total that any finished run used. The metric at B is interpolated linearly
    between two epochs: for costs c and values a, ``a(B) = a_i + (a_j - a_i) (B - c_i) / (c_j - c_i)`` with
    ``c_i <= B < c_j``. It is that of validation, since test data are evaluated only when a run has ended. The
    learning-rate schedule of these runs was not planned for B.
    """
    return [b for axis in get_args(Axis) if (b := _budget(comparison, group, axis))]


def csv(comparison: Comparison) -> str:
    """Return one line per budget and method, for all data sets and networks, with unrounded numbers.

    The metric in its unit (accuracy: percent and percentage points), the budget in the unit of its axis. Unless
    every metric is accuracy, further columns have the metric's name, unit and direction.
    """
    texts = [metric_of(comparison, dataset) for dataset, _ in groups(comparison)]
    heads = ["dataset", "model", *csv_heads(texts), "equal", "budget", "method", "n", "val_mean", "val_std"]
    heads += ["epochs"]
    heads += [f"minus_plain{part}" for part in ("", "_low", "_high", "_n", "_p")]
    lines: list[list[object]] = [[*heads]]
    for group in groups(comparison):
        for budget in budgets(comparison, group):
            for row in budget.rows:
                a, d = row.value, row.difference
                about = csv_cells(metric_of(comparison, group[0]), texts)
                cells = [*map(inert, (*group, *about)), budget.axis, budget.amount, inert(row.method)]
                cells += [a.n, a.mean, a.std] if a else [0, None, None]
                lines.append([*cells, row.epochs, *([d.mean, d.low, d.high, d.n, d.p] if d else [None] * 5)])
    return csv_text(lines)


def _budget(comparison: Comparison, group: tuple[str, str], axis: Axis) -> EqualBudget | None:
    finished = {m: [r for r in runs_of(comparison, group, m) if r.status == "ok"] for m in comparison.methods}
    finished = {method: runs for method, runs in finished.items() if runs}
    totals = [spent(r, axis)[-1] for runs in finished.values() for r in runs if r.metrics]
    numbers = [total for total in totals if total is not None]
    if not numbers:
        return None
    amount = min(numbers)
    text = metric_of(comparison, group[0])
    own_values = {
        m: {r.seed: interpolate(spent(r, axis), values(r, text.key("val"), text), amount) for r in runs}
        for m, runs in finished.items()
    }
    rows = []
    for method, runs in finished.items():
        trained = spread(interpolate(spent(r, axis), spent(r, "epochs"), amount) for r in runs)
        own = own_values[method]
        differences = {c: paired(own, own_values.get(c, {})) for c in controls_of(comparison, method)}
        rows.append(
            BudgetRow(
                method,
                spread(own.values()),
                trained.mean if trained else None,
                None if method == BASELINE else paired(own, own_values.get(BASELINE, {})),
                {c: difference for c, difference in differences.items() if difference},
            )
        )
    return EqualBudget(axis, amount, rows)


def interpolate(x: Sequence[float | None], y: Sequence[float | None], at: float) -> float | None:
    """Return y at ``at`` by linear interpolation between the points that have both values.

    ``x`` rises. None before the first point; the last y after the last one.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    before = [p for p in points if p[0] <= at]
    after = [p for p in points if p[0] > at]
    if not before or not after:
        return before[-1][1] if before else None
    (x0, y0), (x1, y1) = before[-1], after[0]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
