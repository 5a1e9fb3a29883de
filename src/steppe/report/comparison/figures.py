"""The training curves of a comparison."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from steppe.records import Comparison
from steppe.report import plotting
from steppe.report.comparison.curves import METRICS, series
from steppe.report.comparison.summary import groups
from steppe.report.style import styles

_PANELS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def curves(comparison: Comparison, points: int = 200) -> Figure:
    """Return the training curves: loss and accuracy, of training and validation, against epochs.

    A line is the mean over seeds, its band the range from the lowest to the highest seed. Accuracies are in
    percent, losses in nats; training values are over augmented batches. Four panels per data set and network, as
    in Figure 2 of the SADT paper; at most ``points`` epochs of each line are drawn.
    """
    group_names = groups(comparison) or [("", "")]
    figure, panels = plotting.new_figure(2 * len(group_names), 2, (11, 6.6 * len(group_names)))
    style_of = styles(comparison)
    methods: set[str] = set()
    for i, group in enumerate(group_names):
        lines = series(comparison, group, points)
        methods.update(line.method for line in lines)
        for panel, metric in zip(panels[4 * i : 4 * i + 4], _PANELS, strict=True):
            for order, line in enumerate(lines):
                y = line.y[metric]
                values = plotting.numbers([y.mean, y.low, y.high])
                plotting.band(panel, plotting.numbers(line.x["epochs"]), values, style_of[line.method], order)
            title = METRICS[metric] + (f"\n{', '.join(group)}" if len(group_names) > 1 else "")
            plotting.style_axes(panel, "Epoch", title + (", %" if metric.endswith("accuracy") else ""))
    if methods:
        options: dict[str, Any] = {"loc": "outside right upper", "ncols": 1, "fontsize": 10, "labelspacing": 0.8}
        plotting.legend(figure, style_of, (m for m in comparison.methods if m in methods), **options)
    return figure
