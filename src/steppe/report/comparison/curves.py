"""Curves over a run, averaged over seeds: the numbers that the figures and the page draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steppe.records import Comparison, Record
from steppe.report.comparison.summary import chosen

METRICS = {
    "val_accuracy": "Validation accuracy",
    "val_loss": "Validation loss",
    "train_accuracy": "Training accuracy (augmented batches)",
    "train_loss": "Training loss",
}
AXES = {"epochs": "Epochs", "gradients": "Gradient evaluations", "seconds": "Training seconds"}
Values = list[float | None]


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value over seeds, per epoch; accuracies in percent."""

    mean: Values
    low: Values
    high: Values


@dataclass(frozen=True)
class Series:
    """The curves of one method: ``x`` by the names of ``AXES``, ``y`` by those of ``METRICS``."""

    method: str
    n: int
    x: dict[str, Values]
    y: dict[str, Band]


def series(comparison: Comparison, group: tuple[str, str], points: int = 200) -> list[Series]:
    """Return the curves of every method on one data set and network, at most ``points`` epochs of each.

    The mean and the range are over the seeds that ran to the end, or over those under way if none has.
    Curves stop at the last epoch that all these seeds reached, so that a mean never changes its members.
    """
    found = []
    for method in comparison.methods:
        records = chosen(comparison, group, method)
        shown = [r for r in records if r.status == "ok"] or [r for r in records if r.status == "unfinished"]
        length = min((len(r.metrics) for r in shown), default=0)
        if length:
            found.append(_series(method, shown, _thinned(length, points)))
    return found


def _series(method: str, records: list[Record], epochs: Sequence[int]) -> Series:
    def each(name: str, scale: float = 1.0) -> list[list[float]]:
        rows = [[r.metrics[e].get(name) for r in records] for e in epochs]
        return [[scale * v for v in row if v is not None] for row in rows]

    seconds = [[_second(r.timing, e) for r in records] for e in epochs]
    clock = [[v for v in row if v is not None] for row in seconds]
    x = {"epochs": each("epoch"), "gradients": each("gradients"), "seconds": clock}
    y = {name: each(name, 100.0 if name.endswith("accuracy") else 1.0) for name in METRICS}
    return Series(
        method,
        len(records),
        {name: [_mean(row) for row in values] for name, values in x.items()},
        {
            name: Band(
                [_mean(row) for row in values],
                [min(row, default=None) for row in values],
                [max(row, default=None) for row in values],
            )
            for name, values in y.items()
        },
    )


def _second(timing: list[dict[str, Any]], epoch: int) -> float | None:
    return timing[epoch].get("seconds") if epoch < len(timing) else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _thinned(length: int, points: int) -> list[int]:
    """Return up to ``points`` indices of ``length``, evenly spaced, first and last among them."""
    if length <= points:
        return list(range(length))
    return sorted({round(i * (length - 1) / (points - 1)) for i in range(points)})
