"""What the figures of a diagnosis share: panels, bands over seeds, keys, the ground of a contour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steppe.report.comparison.figures import INK, dress, label
from steppe.report.comparison.summary import BASELINE
from steppe.report.diagnosis.summary import DiagnosisRow
from steppe.report.style import Style


def panels_of(
    rows: int, columns: int, size: tuple[float, float], widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many rows and columns of panels, and these in reading order; inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    return figure, list(panels.flat)


def band(
    panel: Axes,
    x: list[float],
    values: np.ndarray,
    style: Style,
    method: str,
    order: int,
    every: int | None = None,
) -> None:
    """Draw the mean of rows with a band from lowest to highest."""
    mean = values.mean(0)
    if len(values) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=style.light, alpha=0.10, linewidth=0)
    step = every or max(1, len(x) // 6)
    panel.plot(
        x,
        mean,
        color=style.light,
        linewidth=style.width * 0.75,
        linestyle=(0, style.dash) if style.dash else "-",
        marker=style.marker or None,
        markersize=4,
        markevery=(order % step, step),
        zorder=4 if method == BASELINE else 3,
    )


def ground(figure: Figure, panel: Axes, found: dict[str, Any], *, ways: str) -> None:
    """Draw the loss on a plane of principal components, in grey, with axes that say how much they explain.

    The scale ends at the 90th percentile; what is above has the darkest grey.
    """
    losses = np.array([[number(v) for v in line] for line in found["loss"]])
    finite = losses[np.isfinite(losses)]
    low, high = float(finite.min()), float(np.quantile(finite, 0.9))
    levels = np.linspace(low, high if high > low else low + 1, 15)
    filled = np.minimum(np.where(np.isfinite(losses), losses, np.inf), 1e9)
    drawn = panel.contourf(found["xs"], found["ys"], filled, levels=levels, cmap="Greys", extend="max", alpha=0.75)
    first, second = (f"{100 * share:.0f} %" for share in found["explained"])
    dress(panel, f"First component, distance in weights ({first} of the variance)", ways)
    panel.set_ylabel(f"Second component ({second} of the variance)", fontsize=9, color=INK)
    panel.grid(visible=False)
    bar = figure.colorbar(drawn, ax=panel, shrink=0.85, pad=0.02, format="%.2f")
    bar.set_label("Loss on the plane, nats", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def legend(
    figure: Figure,
    look: dict[str, Style],
    rows: Sequence[DiagnosisRow],
    *,
    bars: bool = False,
    points: bool = False,
) -> None:
    """Write the key of the rows' methods below the figure: as lines, as bars or as points."""
    made = _bar_key if bars else _point_key if points else _line_key
    keys(figure, look, [row.method for row in rows], made)


def keys(
    figure: Figure, look: dict[str, Style], methods: Sequence[str], made: Callable[[Style], Any] | None = None
) -> None:
    """Write the key of these methods below the figure."""
    key = figure.legend(
        [(made or _line_key)(look[method]) for method in methods],
        [label(method) for method in methods],
        loc="outside lower center",
        ncols=min(len(methods), 6),
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )
    for entry in key.get_texts():
        entry.set_parse_math(False)


def _line_key(style: Style) -> Line2D:
    dash: Any = (0, style.dash) if style.dash else "-"
    return Line2D([], [], color=style.light, linewidth=style.width, linestyle=dash, marker=style.marker or None)


def _point_key(style: Style) -> Line2D:
    return Line2D([], [], color=style.light, linestyle="", marker=style.marker or "o")


def _bar_key(style: Style) -> Patch:
    return Patch(facecolor=style.light, hatch="////" if style.dash else None, edgecolor="white")


def number(value: float | None) -> float:
    """Return a value as written in JSON: none is what was not finite."""
    return float("nan") if value is None else value
