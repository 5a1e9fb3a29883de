"""Curves over a run, averaged over seeds: their numbers, and the figure of the training curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from steppe.records import Comparison, Record
from steppe.report import plotting
from steppe.report.comparison.summary import groups, metric_of, runs_of
from steppe.report.metric_text import ACCURACY_TEXT, MetricText
from steppe.report.style import styles

AXES = {"epochs": "Epochs", "gradients": "Gradient evaluations", "seconds": "Training seconds"}
Values = list[float | None]


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value over seeds, per epoch; shares in percent."""

    mean: Values
    low: Values
    high: Values


@dataclass(frozen=True)
class Series:
    """The curves of one method: ``x`` by the names of ``AXES``, ``y`` by those of ``titles``."""

    method: str
    n: int
    x: dict[str, Values]
    y: dict[str, Band]


def titles(comparison: Comparison, group: tuple[str, str]) -> dict[str, str]:
    """Return the title of each curve of a data set and network by its name in the records, validation first.

    Without the metric on training batches, which not every metric has, there is no curve of it.
    """
    text = metric_of(comparison, group[0])
    train = f"Training {text.name}{' (training batches)' if text.is_accuracy else ''}"
    curves = {
        text.key("val"): f"Validation {text.name}",
        "val_loss": "Validation loss",
        text.key("train"): train,
        "train_loss": "Training loss",
    }
    lines = [line for r in comparison.records if (r.dataset, r.model) == group for line in r.metrics]
    if lines and all(line.get(text.key("train")) is None for line in lines):
        del curves[text.key("train")]
    return curves


def figure(comparison: Comparison, points: int = 200) -> Figure:
    """Return the training curves: loss and metric, of training and validation, against epochs.

    A line is the mean over seeds, its band the range from the lowest to the highest seed. A loss whose first tenth
    of epochs is far above the rest leaves its panel there, which the title says. Training values are over
    (augmented) batches. Four panels per data set and network, as in Figure 2 of the SADT paper; at most ``points``
    epochs of each line are drawn.
    """
    group_names = groups(comparison) or [("", "")]
    drawing, panels = plotting.new_figure(2 * len(group_names), 2, (11, 6.6 * len(group_names)))
    style_of = styles(comparison)
    methods: set[str] = set()
    for i, group in enumerate(group_names):
        lines = series(comparison, group, points)
        methods.update(line.method for line in lines)
        text, names = metric_of(comparison, group[0]), titles(comparison, group)
        panel_names = ("train_loss", text.key("train"), "val_loss", text.key("val"))
        for panel, metric in zip(panels[4 * i : 4 * i + 4], panel_names, strict=True):
            panel.set_visible(metric in names)
            if metric not in names:
                continue
            for order, line in enumerate(lines):
                y = line.y[metric]
                values = plotting.numbers([y.mean, y.low, y.high])
                plotting.band(panel, plotting.numbers(line.x["epochs"]), values, style_of[line.method], order)
            title = names[metric] if metric.endswith("loss") else text.caption(names[metric])
            if metric.endswith("loss") and (limits := _later_limits([line.y[metric] for line in lines])):
                panel.set_ylim(*limits)
                title += ", first epochs cut off"
            title += f"\n{', '.join(group)}" if len(group_names) > 1 else ""
            plotting.style_axes(panel, "Epoch", title)
    if methods:
        options: dict[str, Any] = {"loc": "outside right upper", "ncols": 1, "fontsize": 10, "labelspacing": 0.8}
        plotting.legend(drawing, style_of, (m for m in comparison.methods if m in methods), **options)
    return drawing


def series(comparison: Comparison, group: tuple[str, str], points: int = 200) -> list[Series]:
    """Return the curves of every method on one data set and network, at most ``points`` epochs of each.

    Mean and range are over the seeds that ran to the end, or over the unfinished ones if none has. Curves stop at
    the last epoch that all these seeds reached, so that a mean is over the same seeds at every epoch.
    """
    curves = []
    for method in comparison.methods:
        records = runs_of(comparison, group, method)
        records = [r for r in records if r.status == "ok"] or [r for r in records if r.status == "unfinished"]
        length = min((len(r.metrics) for r in records), default=0)
        if length:
            curves.append(_series(method, records, _thinned(length, points), comparison))
    return curves


def spent(record: Record, axis: str) -> Values:
    """Return what a run had spent after each of its epochs, in the unit of ``axis``."""
    if axis == "seconds":
        times: Values = [line.get("seconds") for line in record.timing[: len(record.metrics)]]
        return times + [None] * (len(record.metrics) - len(times))
    return [line.get("epoch" if axis == "epochs" else axis) for line in record.metrics]


def values(record: Record, metric: str, text: MetricText = ACCURACY_TEXT) -> Values:
    """Return a loss or the metric of a run after each of its epochs; shares in percent."""
    scale = 1.0 if metric.endswith("loss") else text.scale
    return [None if (v := line.get(metric)) is None else scale * v for line in record.metrics]


def _series(method: str, records: list[Record], epochs: Sequence[int], comparison: Comparison) -> Series:
    group = records[0].dataset, records[0].model
    text = metric_of(comparison, group[0])

    def over_seeds(columns: list[Values]) -> list[list[float]]:
        return [[v for column in columns if (v := column[e]) is not None] for e in epochs]

    x = {axis: over_seeds([spent(r, axis) for r in records]) for axis in AXES}
    y = {m: over_seeds([values(r, m, text) for r in records]) for m in titles(comparison, group)}
    bands = {
        metric: Band(
            [_mean(row) for row in rows],
            [min(row, default=None) for row in rows],
            [max(row, default=None) for row in rows],
        )
        for metric, rows in y.items()
    }
    return Series(method, len(records), {axis: [_mean(row) for row in rows] for axis, rows in x.items()}, bands)


def _later_limits(bands: Sequence[Band]) -> tuple[float, float] | None:
    """Return the limits of a loss after its first tenth of epochs, if these are more than three times as high."""
    cut = [(b, -(-len(b.mean) // 10)) for b in bands]
    first = [v for b, n in cut for v in b.high[:n] if v is not None and math.isfinite(v)]
    later = [v for b, n in cut for v in (*b.low[n:], *b.high[n:]) if v is not None and math.isfinite(v)]
    if not first or not later or max(later) <= 0 or max(first) <= 3 * max(later):
        return None
    margin = 0.05 * (max(later) - min(later))
    return min(later) - margin, max(later) + margin


def _mean(row: list[float]) -> float | None:
    return sum(row) / len(row) if row else None


def _thinned(length: int, points: int) -> list[int]:
    """Return up to ``points`` indices of ``length``, evenly spaced, first and last among them."""
    if length <= points:
        return list(range(length))
    return sorted({round(i * (length - 1) / (points - 1)) for i in range(points)})
