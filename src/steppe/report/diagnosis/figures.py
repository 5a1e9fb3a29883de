"""Figures of a diagnosis: what is overlaid shares its axes, its samples and its directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from steppe.records import Comparison
from steppe.report.comparison.figures import FAINT, INK, dress, label
from steppe.report.diagnosis.summary import ACCURACY, SHARPNESS, DiagnosisRow, named
from steppe.report.diagnosis.surface_3d import limits
from steppe.report.plotting import band, legend, number, panels_of
from steppe.report.style import styles

_DISTANCE = "Distance along one random direction, in filter norms"


def lines(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return loss and accuracy along one random direction: mean over seeds, band from lowest to highest.

    The direction's noise is the same for all runs; each network moves at the scale of its own filters (Li et al.,
    NeurIPS 2018; figure 2 of the RWP paper).
    """
    figure, panels = panels_of(1, 2, (11, 4.2))
    look = styles(comparison)
    for panel, key, scale, title in (
        (panels[0], "loss", 1.0, "Loss, nats"),
        (panels[1], "accuracy", 100.0, "Accuracy, %"),
    ):
        for order, row in enumerate(rows):
            at = row.runs[0].found["line"]["at"]
            values = [[number(v) * scale for v in run.found["line"][key]] for run in row.runs]
            band(panel, at, np.array(values), look[row.method], row.method, order)
        dress(panel, _DISTANCE, title)
        panel.axvline(0, color=FAINT, linewidth=1, zorder=1)
    highest = [max(map(number, run.found["line"]["loss"])) for row in rows for run in row.runs]
    lowest = [min(map(number, run.found["line"]["loss"])) for row in rows for run in row.runs]
    if np.nanmax(highest) > 20 * max(np.nanmin(lowest), 1e-3):
        panels[0].set_yscale("log")
    legend(figure, look, rows)
    return figure


def planes(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return the loss on a random plane through one network of each method, all on one scale of colour.

    Both directions' noise is the same for all; the network is that of the method's first seed.
    """
    columns = min(len(rows), 5)
    count = -(-len(rows) // columns)
    figure, panels = panels_of(count, columns, (2.3 * columns + 1.2, 2.5 * count + 0.4))
    surfaces = [
        np.array([[number(v) for v in line] for line in row.runs[0].found["plane"]["loss"]]) for row in rows
    ]
    levels = np.linspace(*limits(rows), 15)
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


def corruptions(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return accuracy under corruption: bars by family, and against severity (figure 6 of the RWP paper).

    Means over seeds; whiskers are from the lowest to the highest seed. Severity 0 is the clean image.
    """
    figure, panels = panels_of(1, 2, (11, 4.4), widths=(1.5, 1))
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
        band(panels[1], list(range(6)), severities, style, row.method, i, every=1)
    dress(
        panels[0], "Family of corruption (15 corruptions, mean of 5 severities)", "Accuracy on corrupted images, %"
    )
    panels[0].set_xticks(range(len(names)), names)
    dress(panels[1], "Severity (0: clean)", "Accuracy over all 15 corruptions, %")
    legend(figure, look, rows, bars=True)
    return figure


def spectra(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return the density of the Hessian's eigenvalues, mean over seeds.

    Each mass is drawn as a Gaussian whose deviation is a hundredth of the axis.
    """
    figure, (panel,) = panels_of(1, 1, (11, 3.8))
    look = styles(comparison)
    held = [[run.found["hessian"]["density"] for run in row.runs] for row in rows]
    nodes = np.concatenate([d["nodes"] for own in held for d in own])
    low, high = float(nodes.min()), float(nodes.max())
    rim = 0.05 * (high - low) or 1.0
    at = np.linspace(low - rim, high + rim, 401)
    width = (at[-1] - at[0]) / 100
    for order, (row, own) in enumerate(zip(rows, held, strict=True)):
        curves = []
        for d in own:
            z = (at[:, None] - np.array(d["nodes"])[None]) / width
            curves.append(np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi)) @ np.array(d["weights"]))
        mean = np.maximum(np.mean(curves, axis=0), 1e-30)
        band(panel, at.tolist(), mean[None], look[row.method], row.method, order, every=60)
    panel.set_yscale("log")
    # down to a tenth of the smallest mass there is
    least = min(float(min(d["weights"])) for own in held for d in own)
    panel.set_ylim(bottom=max(0.1 * least / width, 1e-12))
    dress(panel, "Eigenvalue of the Hessian", "Share of eigenvalues per unit of the axis, logarithmic scale")
    legend(figure, look, rows)
    return figure


def filters(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure:
    """Return the distribution of filter norms, all seeds of a method together (figure 4 of the RWP paper)."""
    figure, (panel,) = panels_of(1, 1, (11, 3.6))
    look = styles(comparison)
    held = [[np.array(run.found["filters"]["quantiles"]) for run in row.runs] for row in rows]
    every = np.concatenate([q for own in held for q in own])
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-9), 61)
    for order, (row, own) in enumerate(zip(rows, held, strict=True)):
        # each of the equally spaced quantiles stands for an equal share of the filters
        shares = [100 * np.histogram(q, edges)[0] / len(q) for q in own]
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        band(panel, middles, np.mean(shares, axis=0)[None], look[row.method], row.method, order)
    dress(
        panel,
        "L2 norm of a filter (of a unit's incoming weights)",
        f"Share of filters per {edges[1] - edges[0]:.2g}, %",
    )
    legend(figure, look, rows)
    return figure


def scatter(comparison: Comparison, rows: Sequence[DiagnosisRow], notes: dict[str, str]) -> Figure:
    """Return test accuracy against each measure of sharpness, a point per run; ``notes`` go below the titles."""
    count = -(-len(SHARPNESS) // 4)
    figure, panels = panels_of(count, 4, (11.5, 2.9 * count + 0.3))
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
        title = named(measure.name, rows[0].runs[0].found["settings"])
        dress(panel, measure.axis, f"{title}\n{notes[measure.name]}")
        if values and min(values) > 0 and max(values) > 50 * min(values):
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
        else:
            # more of them would run into the next panel's
            panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
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
    legend(figure, look, rows, points=True)
    return figure
