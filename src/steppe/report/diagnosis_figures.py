"""Figures of a diagnosis: what is overlaid shares its axes, its samples and its directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from steppe.records import Comparison
from steppe.report.diagnosis_rows import ACCURACY, SHARPNESS, Diagnosed, DiagnosisRow, Measure, named
from steppe.report.figures import FAINT, INK, dress, label
from steppe.report.rows import BASELINE
from steppe.report.style import Style, styles

_DISTANCE = "Distance along one random direction, in filter norms"


def lines(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return loss and accuracy along one random direction: mean over seeds, band from lowest to highest.

    The direction's noise is the same for all runs; each network moves at the scale of its own filters (Li et al.,
    NeurIPS 2018; figure 2 of the RWP paper).
    """
    figure, panels = _figure(1, 2, (11, 4.2))
    look = styles(comparison)
    for panel, key, scale, title in (
        (panels[0], "loss", 1.0, "Loss, nats"),
        (panels[1], "accuracy", 100.0, "Accuracy, %"),
    ):
        for order, row in enumerate(rows):
            at = row.runs[0].found["line"]["at"]
            values = [[_number(v) * scale for v in run.found["line"][key]] for run in row.runs]
            _band(panel, at, np.array(values), look[row.method], row.method, order)
        dress(panel, _DISTANCE, title)
        panel.axvline(0, color=FAINT, linewidth=1, zorder=1)
    highest = [max(map(_number, run.found["line"]["loss"])) for row in rows for run in row.runs]
    lowest = [min(map(_number, run.found["line"]["loss"])) for row in rows for run in row.runs]
    if np.nanmax(highest) > 20 * max(np.nanmin(lowest), 1e-3):
        panels[0].set_yscale("log")
    _legend(figure, look, rows)
    return figure


def planes(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return the loss on a random plane through one network of each method, all on one scale of colour.

    Both directions' noise is the same for all; the network is that of the method's first seed.
    """
    columns = min(len(rows), 5)
    count = -(-len(rows) // columns)
    figure, panels = _figure(count, columns, (2.3 * columns + 1.2, 2.5 * count + 0.4))
    surfaces = [
        np.array([[_number(v) for v in line] for line in row.runs[0].found["plane"]["loss"]]) for row in rows
    ]
    every = np.concatenate([s.ravel() for s in surfaces])
    every = every[np.isfinite(every)]
    low, high = float(every.min()), float(np.quantile(every, 0.9))
    levels = np.linspace(low, high if high > low else low + 1, 15)
    drawn: Any = None
    for i, (panel, row, surface) in enumerate(zip(panels, rows, surfaces, strict=False)):
        at = row.runs[0].found["plane"]["at"]
        filled = np.where(np.isfinite(surface), surface, np.inf)
        drawn = panel.contourf(at, at, np.minimum(filled, 1e9), levels=levels, cmap="viridis_r", extend="max")
        panel.contour(
            at, at, np.minimum(filled, 1e9), levels=levels[::2], colors="white", linewidths=0.4, alpha=0.6
        )
        panel.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
        seed = row.runs[0].record.seed
        lowest = i + columns >= len(rows)
        across = "Direction 1, filter norms" if lowest else ""
        dress(panel, across, f"{label(row.method).strip()}, seed {seed}")
        ticks = [at[0], at[0] / 2, 0, at[-1] / 2, at[-1]]
        panel.set_xticks(ticks, [f"{t:g}" if lowest else "" for t in ticks])
        panel.set_yticks(ticks, [f"{t:g}" if i % columns == 0 else "" for t in ticks])
        if i % columns == 0:
            panel.set_ylabel("Direction 2, filter norms", fontsize=9, color=INK)
        panel.set_aspect("equal")
        panel.grid(visible=False)
    for panel in panels[len(rows) :]:
        panel.set_visible(False)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.8, pad=0.015, format="%.2f")
    bar.set_label("Loss, nats (one scale for all)", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return figure


def ends(comparison: Comparison, found: dict[str, Any]) -> Figure:
    """Return the plane through the start and the ends of one seed's runs, and the loss along straight paths.

    The plane is that of the first two principal components (figures 2 to 5 of the OKDPH paper's supplement).
    """
    figure, panels = _figure(1, 2, (11, 5))
    look = styles(comparison)
    plane, paths = panels
    losses = np.array([[_number(v) for v in line] for line in found["loss"]])
    finite = losses[np.isfinite(losses)]
    low, high = float(finite.min()), float(np.quantile(finite, 0.9))
    levels = np.linspace(low, high if high > low else low + 1, 15)
    filled = np.minimum(np.where(np.isfinite(losses), losses, np.inf), 1e9)
    drawn = plane.contourf(found["xs"], found["ys"], filled, levels=levels, cmap="Greys", extend="max", alpha=0.75)
    start, *places = found["places"]
    plane.plot(*start, marker="+", color=INK, markersize=12, markeredgewidth=2, linestyle="")
    plane.annotate("start", start, (7, -11), textcoords="offset points", fontsize=9, color=INK)
    for method, place in zip(found["methods"], places, strict=True):
        style = look[method]
        plane.plot([start[0], place[0]], [start[1], place[1]], color=style.light, linewidth=0.8, alpha=0.6)
        plane.plot(*place, marker=style.marker or "o", color=style.light, markersize=8, markeredgecolor="white")
    shares = [f"{100 * share:.0f} %" for share in found["explained"]]
    dress(
        plane, f"First component ({shares[0]} of the variance), distance in weights", "Start and ends of one seed"
    )
    plane.set_ylabel(f"Second component ({shares[1]})", fontsize=9, color=INK)
    plane.grid(visible=False)
    bar = figure.colorbar(drawn, ax=plane, shrink=0.85, pad=0.02, format="%.2f")
    bar.set_label("Loss on the plane, nats", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    for order, (method, path) in enumerate(found["paths"].items()):
        values = np.array([[_number(v) for v in path["loss"]]])
        along = np.linspace(0, 1, values.shape[1]).tolist()
        _band(paths, along, values, look[method], method, order, every=2)
    first = label(found["methods"][0]).strip()
    dress(paths, f"From {first} (0) straight to the method (1)", "Loss along the way, nats")
    _keys(figure, look, found["methods"])
    return figure


def corruptions(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return accuracy under corruption: bars by family, and against severity (figure 6 of the RWP paper).

    Means over seeds; whiskers are from the lowest to the highest seed. Severity 0 is the clean image.
    """
    figure, panels = _figure(1, 2, (11, 4.4), widths=(1.5, 1))
    look = styles(comparison)
    families = list(rows[0].runs[0].found["robustness"]["families"])
    names = [*families, "mean"]
    width = 0.86 / len(rows)
    for i, row in enumerate(rows):
        tables = [run.found["robustness"] for run in row.runs]
        values = 100 * np.array([[*(t["families"][f] for f in families), t["mean"]] for t in tables])
        mean = values.mean(0)
        x = np.arange(len(names)) + (i - (len(rows) - 1) / 2) * width
        style = look[row.method]
        panels[0].bar(
            x, mean, width * 0.9, color=style.light, hatch="////" if style.dash else None, edgecolor="white"
        )
        spread = np.stack([mean - values.min(0), values.max(0) - mean])
        panels[0].errorbar(x, mean, yerr=spread, fmt="none", ecolor=INK, elinewidth=0.8)
        severities = 100 * np.array([[t["clean"], *t["severities"]] for t in tables])
        _band(panels[1], list(range(6)), severities, style, row.method, i, every=1)
    dress(
        panels[0], "Family of corruption (15 corruptions, mean of 5 severities)", "Accuracy on corrupted images, %"
    )
    panels[0].set_xticks(range(len(names)), names)
    dress(panels[1], "Severity (0: clean)", "Accuracy over all 15 corruptions, %")
    _legend(figure, look, rows, bars=True)
    return figure


def filters(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return the distribution of filter norms, all seeds of a method together (figure 4 of the RWP paper)."""
    figure, (panel,) = _figure(1, 1, (11, 3.6))
    look = styles(comparison)
    held = [[np.array(run.found["filters"]["quantiles"]) for run in row.runs] for row in rows]
    every = np.concatenate([q for own in held for q in own])
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-9), 61)
    for order, (row, own) in enumerate(zip(rows, held, strict=True)):
        # each of the equally spaced quantiles stands for an equal share of the filters
        shares = [100 * np.histogram(q, edges)[0] / len(q) for q in own]
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        _band(panel, middles, np.mean(shares, axis=0)[None], look[row.method], row.method, order)
    dress(
        panel,
        "L2 norm of a filter (of a unit's incoming weights)",
        f"Share of filters per {edges[1] - edges[0]:.2g}, %",
    )
    _legend(figure, look, rows)
    return figure


def scatter(comparison: Comparison, rows: Sequence[DiagnosisRow], notes: dict[str, str]) -> Figure:
    """Return test accuracy against each measure of sharpness, a point per run; ``notes`` go below the titles."""
    count = -(-len(SHARPNESS) // 4)
    figure, panels = _figure(count, 4, (11.5, 2.9 * count + 0.3))
    look = styles(comparison)
    for i, (panel, measure) in enumerate(zip(panels, SHARPNESS, strict=False)):
        values: list[float] = []
        for row in rows:
            points = [(x, y) for run in row.runs if (x := measure.of(run)) is not None and (y := ACCURACY.of(run))]
            style = look[row.method]
            panel.plot(
                [x for x, _ in points],
                [y for _, y in points],
                linestyle="",
                marker=style.marker or "o",
                color=style.light,
                markersize=5,
            )
            values += [x for x, _ in points]
        title = _titled(measure, rows[0].runs[0])
        dress(panel, measure.axis, f"{title}\n{notes[measure.name]}")
        if values and min(values) > 0 and max(values) > 50 * min(values):
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
        if i % 4 == 0:
            panel.set_ylabel("Test accuracy, %", fontsize=9, color=INK)
        else:
            panel.set_yticklabels([])
    top = panels[: len(SHARPNESS)]
    limits = [p.get_ylim() for p in top]
    for panel in top:
        panel.set_ylim(min(a for a, _ in limits), max(b for _, b in limits))
    for panel in panels[len(SHARPNESS) :]:
        panel.set_visible(False)
    _legend(figure, look, rows, points=True)
    return figure


def _titled(measure: Measure, run: Diagnosed) -> str:
    return named(measure.name, run.found["settings"])


def _figure(
    rows: int, columns: int, size: tuple[float, float], widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    return figure, list(panels.flat)


def _band(
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


def _legend(
    figure: Figure,
    look: dict[str, Style],
    rows: Sequence[DiagnosisRow],
    *,
    bars: bool = False,
    points: bool = False,
) -> None:
    made = _bar_key if bars else _point_key if points else _line_key
    _keys(figure, look, [row.method for row in rows], made)


def _keys(
    figure: Figure, look: dict[str, Style], methods: Sequence[str], made: Callable[[Style], Any] | None = None
) -> None:
    legend = figure.legend(
        [(made or _line_key)(look[method]) for method in methods],
        [label(method) for method in methods],
        loc="outside lower center",
        ncols=min(len(methods), 6),
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)


def _line_key(style: Style) -> Line2D:
    dash: Any = (0, style.dash) if style.dash else "-"
    return Line2D([], [], color=style.light, linewidth=style.width, linestyle=dash, marker=style.marker or None)


def _point_key(style: Style) -> Line2D:
    return Line2D([], [], color=style.light, linestyle="", marker=style.marker or "o")


def _bar_key(style: Style) -> Patch:
    return Patch(facecolor=style.light, hatch="////" if style.dash else None, edgecolor="white")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
