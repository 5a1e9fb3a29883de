"""Figures of a comparison, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steppe.records import Comparison, write_text
from steppe.report.comparison import pareto as _cost
from steppe.report.comparison.curves import METRICS, Series, series
from steppe.report.comparison.summary import BASELINE, groups
from steppe.report.formatting import plain_text
from steppe.report.style import Style, styles

_PANELS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
INK, FAINT = "#2b2f36", "#d9dce1"


def curves(comparison: Comparison, points: int = 200) -> Figure:
    """Return the training curves: loss and accuracy, of training and validation, against epochs.

    A line is the mean over seeds and its band the range from the lowest to the highest seed; accuracies are
    in percent, losses in nats. Training values are over augmented batches. Four panels per data set and
    network, in the manner of Figure 2 of the SADT paper; at most ``points`` epochs of each line are drawn.
    """
    found = groups(comparison) or [("", "")]
    figure = Figure(figsize=(11, 6.6 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    look = styles(comparison)
    panels = figure.subplots(2 * len(found), 2, squeeze=False)
    shown: dict[str, Line2D] = {}
    for i, group in enumerate(found):
        drawn = series(comparison, group, points)
        for panel, metric in zip(panels[2 * i : 2 * i + 2].flat, _PANELS, strict=True):
            for order, line in enumerate(drawn):
                shown[line.method] = _draw(panel, line, metric, look[line.method], order)
            title = METRICS[metric] + (f"\n{', '.join(group)}" if len(found) > 1 else "")
            dress(panel, "Epoch", title + (", %" if metric.endswith("accuracy") else ""))
    ordered = [m for m in comparison.methods if m in shown]
    if ordered:
        legend = figure.legend(
            [shown[m] for m in ordered],
            [label(m) for m in ordered],
            loc="outside right upper",
            frameon=False,
            handlelength=3.6,
            labelspacing=0.8,
        )
        for entry in legend.get_texts():
            entry.set_parse_math(False)
    return figure


def accuracy_cost(comparison: Comparison, cost: _cost.CostAxis = "gradients") -> Figure:
    """Return test accuracy after the last epoch against the cost of a run, one point per method.

    The cost is gradient evaluations (backward passes) or training seconds, the mean over seeds. Bars are
    the sample standard deviation over seeds. Methods of equal cost stand side by side. The stepped line is
    the Pareto front (see ``steppe.report.comparison.pareto.front``).
    """
    found = groups(comparison) or [("", "")]
    figure = Figure(figsize=(8, 4.8 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    look = styles(comparison)
    for panel, group in zip(figure.subplots(len(found), 1, squeeze=False).flat, found, strict=True):
        placed = _cost.layout(comparison, group, cost)
        title = "Test accuracy after the last epoch, %"
        dress(panel, _cost.TITLES[cost], title + (f"\n{', '.join(group)}" if len(found) > 1 else ""))
        if placed is None:
            continue
        corners = _cost.stairs(placed.front)
        panel.plot(*zip(*corners, strict=True), color=FAINT, linewidth=2.5, zorder=1)
        for point in placed.points:
            style = look[point.method]
            panel.errorbar(
                point.x,
                point.accuracy.mean,
                yerr=point.accuracy.std or 0.0,
                fmt=style.marker or "o",
                color=style.light,
                markersize=6,
                elinewidth=1.3,
            )
            ends = [point.x, point.label_x], [point.accuracy.mean, point.label_y]
            panel.plot(*ends, color=style.light, linewidth=0.5, alpha=0.6)
            name = panel.text(point.label_x, point.label_y, f" {label(point.method)}", va="center", fontsize=9)
            name.set(color=style.light, parse_math=False)
        panel.set(xlim=placed.x, ylim=placed.y, xticks=placed.x_ticks, yticks=placed.y_ticks)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as its suffix says: ``.svg`` (text as outlines, the same everywhere) or ``.png``.

    Raises:
        steppe.errors.RunError: The file cannot be written.
    """
    if path.suffix == ".svg":
        write_text(path, svg(figure, outlines=True))
        return
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, facecolor="white")
    write_text(path, file.getvalue())


def svg(figure: Figure, outlines: bool = False) -> str:
    """Return the figure as SVG text, equal for equal figures; with live text unless ``outlines``."""
    file = io.StringIO()
    options: Any = {"svg.fonttype": "path" if outlines else "none", "svg.hashsalt": "steppe"}
    with matplotlib.rc_context(options):
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=about, facecolor="white")
    return file.getvalue()


def inline(figure: Figure) -> str:
    """Return the figure as an SVG element for an HTML page: no prolog, and no name space to look up."""
    text = svg(figure)
    text = text[text.index("<svg") :]
    return re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text)


def _draw(panel: Axes, line: Series, metric: str, style: Style, order: int) -> Line2D:
    band = line.y[metric]
    rows = zip(line.x["epochs"], band.mean, band.low, band.high, strict=True)
    known = [(x, m, lo, hi) for x, m, lo, hi in rows if None not in (x, m, lo, hi)]
    x, mean, low, high = ([row[i] for row in known] for i in range(4))
    panel.fill_between(x, low, high, color=style.light, alpha=0.10, linewidth=0)  # type: ignore[arg-type]
    # Markers of different lines stand at different epochs: at one epoch they would cover each other.
    step = max(1, len(x) // 6)
    (drawn,) = panel.plot(
        x,  # type: ignore[arg-type]
        mean,  # type: ignore[arg-type]
        color=style.light,
        linewidth=style.width * 0.75,
        linestyle=(0, style.dash) if style.dash else "-",
        marker=style.marker or None,
        markersize=4,
        markevery=(order % step, step),
        zorder=4 if line.method == BASELINE else 3,
    )
    return drawn


def dress(panel: Axes, x: str, title: str) -> None:
    """Give a panel its title, the name of its horizontal axis and the report's look."""
    panel.set_title(plain_lines(title), loc="left", fontsize=10.5, color=INK, parse_math=False)
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.tick_params(colors=INK, labelsize=9, length=0)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)


def plain_lines(title: str) -> str:
    """Return the title with each of its lines free of characters that would break the figure."""
    return "\n".join(plain_text(part) for part in title.split("\n"))


def label(method: str) -> str:
    """Return a method's name as a legend shows it."""
    # matplotlib leaves labels that begin with an underscore out of legends.
    shown = plain_text(method)
    return f" {shown}" if shown.startswith("_") else shown
