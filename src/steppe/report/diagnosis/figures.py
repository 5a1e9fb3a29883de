"""Figures of a diagnosis. What is overlaid has the same axes, samples and directions.

A ``narrow`` figure is for a telephone: its panels are below each other.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from steppe.records import Comparison
from steppe.report import _html, formatting, plotting
from steppe.report.diagnosis.summary import METRIC, SHARPNESS, DiagnosisRow, with_settings
from steppe.report.plotting import FAINT, INK, NARROW, label, numbers, over_seeds, style_axes
from steppe.report.style import styles

_DISTANCE = "Distance along one random direction, in filter norms"


def lines(comparison: Comparison, rows: Sequence[DiagnosisRow], narrow: bool = False) -> Figure:
    """Return loss and accuracy along one random direction: mean over seeds, band from lowest to highest.

    There is no accuracy of targets that are no classes.

    The direction's noise is the same for all runs; each network moves at the scale of its own filters (Li et al.,
    NeurIPS 2018; figure 2 of the RWP paper).
    """
    scales = [("loss", 1.0, rows[0].wording.with_unit("Loss"))]
    scales += [("accuracy", 100.0, "Accuracy, %")] if has_accuracy(rows) else []
    figure, panels = plotting.new_figure(1, len(scales), (11, 4.2), narrow=narrow)
    style_of = styles(comparison)
    for panel, (key, scale, title) in zip(panels, scales, strict=True):
        for order, row in enumerate(rows):
            at = row.runs[0].diagnosis["line"]["at"]
            values = over_seeds(scale * numbers([run.diagnosis["line"][key] for run in row.runs]))
            plotting.band(panel, at, values, style_of[row.method], order)
        style_axes(panel, _DISTANCE, title)
        panel.axvline(0, color=FAINT, linewidth=1, zorder=1)
    losses = numbers([run.diagnosis["line"]["loss"] for row in rows for run in row.runs])
    if plotting.wide(np.nanmin(losses), np.nanmax(losses)):
        panels[0].set_yscale("log")
    plotting.legend(figure, style_of, (row.method for row in rows))
    return figure


def has_accuracy(rows: Sequence[DiagnosisRow]) -> bool:
    """Return whether the runs have an accuracy along the line."""
    return all(v is not None for row in rows for run in row.runs for v in run.diagnosis["line"]["accuracy"])


def planes(comparison: Comparison, rows: Sequence[DiagnosisRow], narrow: bool = False) -> Figure:
    """Return the loss on a random plane through one network of each method, all on one scale of colour.

    Both directions' noise is the same for all; the network is that of the method's first seed. The scale is
    logarithmic where the losses need one (see `plotting.levels`).
    """
    columns = min(len(rows), 2 if narrow else 5)
    count = -(-len(rows) // columns)
    size = (NARROW, 2.0 * count + 1) if narrow else (2.3 * columns + 1.2, 2.5 * count + 0.4)
    figure, panels = plotting.new_figure(count, columns, size)
    levels = levels_of(rows)
    contours: Any = None
    for i, (panel, row) in enumerate(zip(panels, rows, strict=False)):
        plane = row.runs[0].diagnosis["plane"]
        at, losses = plane["at"], numbers(plane["loss"])
        contours = plotting.filled_contour(panel, at, at, losses, levels, cmap="viridis_r")
        options: dict[str, Any] = {"colors": "white", "linewidths": 0.4, "alpha": 0.6}
        panel.contour(at, at, plotting.clipped(losses, levels), levels=levels.at[::2], **options)
        panel.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
        lowest = i + columns >= len(rows)
        # a long name would run into the next panel
        title = textwrap.fill(f"{label(row.method).strip()}, seed {row.runs[0].record.seed}", 24)
        style_axes(panel, "Direction 1, filter norms" if lowest else "", title)
        ticks = [at[0], 0, at[-1]] if narrow else [at[0], at[0] / 2, 0, at[-1] / 2, at[-1]]
        names = [formatting.minus(f"{t:g}") for t in ticks]
        panel.set_xticks(ticks, names if lowest else [""] * len(ticks))
        panel.set_yticks(ticks, names if i % columns == 0 else [""] * len(ticks))
        if i % columns == 0:
            panel.set_ylabel("Direction 2, filter norms", fontsize=9, color=INK)
        panel.set_aspect("equal")
        panel.grid(visible=False)
    for panel in panels[len(rows) :]:
        panel.set_visible(False)
    title = f"{rows[0].wording.with_unit('Loss')} (one scale for all)"
    plotting.color_bar(figure, contours, panels, title, shrink=0.8, pad=0.015)
    return figure


def surfaces(rows: Sequence[DiagnosisRow]) -> dict[str, Any]:
    """Return the loss on the plane of each method's first seed, and the scale of all."""
    levels = levels_of(rows)
    planes = [row.runs[0].diagnosis["plane"] for row in rows]
    surfaces = [{"at": plane["at"], "loss": _html.rounded(plane["loss"])} for plane in planes]
    title = rows[0].wording.with_unit("loss")
    scale = {"title": title, "low": levels.at[0], "high": levels.at[-1], "log": levels.log}
    return {"scale": scale, "surfaces": surfaces}


def levels_of(rows: Sequence[DiagnosisRow]) -> plotting.Levels:
    """Return the levels of colour that all methods' planes have in common."""
    losses = [numbers(row.runs[0].diagnosis["plane"]["loss"]).ravel() for row in rows]
    return plotting.levels(np.concatenate(losses))


def corruptions(comparison: Comparison, rows: Sequence[DiagnosisRow], narrow: bool = False) -> Figure:
    """Return accuracy under corruption: bars by family, and against severity (figure 6 of the RWP paper).

    Means over seeds; whiskers are from the lowest to the highest seed. Severity 0 is the clean image.
    """
    figure, (bars, curves) = plotting.new_figure(1, 2, (11, 4.4), (1.5, 1), narrow)
    style_of = styles(comparison)
    families = list(rows[0].runs[0].diagnosis["robustness"]["families"])
    width = 0.86 / len(rows)
    for i, row in enumerate(rows):
        tables = [run.diagnosis["robustness"] for run in row.runs]
        style = style_of[row.method]
        values = 100 * np.array([[*(t["families"][f] for f in families), t["mean"]] for t in tables])
        mean = values.mean(0)
        x = np.arange(len(families) + 1) + (i - (len(rows) - 1) / 2) * width
        hatch = "////" if style.dash else None
        bars.bar(x, mean, width * 0.9, color=style.light, hatch=hatch, edgecolor="white")
        whiskers = np.stack([mean - values.min(0), values.max(0) - mean])
        bars.errorbar(x, mean, yerr=whiskers, fmt="none", ecolor=INK, elinewidth=0.8)
        severities = 100 * np.array([[t["clean"], *t["severities"]] for t in tables])
        plotting.band(curves, list(range(6)), over_seeds(severities), style, i, every=1)
    title = "Accuracy on corrupted images, %"
    style_axes(bars, "Family (15 corruptions, mean of 5 severities)", title)
    bars.set_xticks(range(len(families) + 1), [*families, "mean"])
    style_axes(curves, "Severity (0: clean)", "Accuracy over all 15 corruptions, %")
    plotting.legend(figure, style_of, (row.method for row in rows), "bar")
    return figure


def spectra(comparison: Comparison, rows: Sequence[DiagnosisRow], narrow: bool = False) -> Figure:
    """Return the density of the Hessian's eigenvalues, mean over seeds.

    Each mass is drawn as a Gaussian whose deviation is a hundredth of the axis.
    """
    figure, (panel,) = plotting.new_figure(1, 1, (11, 3.8), narrow=narrow)
    style_of = styles(comparison)
    densities = [[run.diagnosis["hessian"]["density"] for run in row.runs] for row in rows]
    nodes = np.concatenate([d["nodes"] for own in densities for d in own])
    low, high = float(nodes.min()), float(nodes.max())
    rim = 0.05 * (high - low) or 1.0
    at = np.linspace(low - rim, high + rim, 401)
    width = (at[-1] - at[0]) / 100
    for order, (row, own) in enumerate(zip(rows, densities, strict=True)):
        curves = []
        for d in own:
            z = (at[:, None] - np.array(d["nodes"])[None]) / width
            curves.append(np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi)) @ np.array(d["weights"]))
        mean = np.maximum(np.mean(curves, axis=0), 1e-30)
        plotting.band(panel, at.tolist(), over_seeds(mean[None]), style_of[row.method], order, every=60)
    panel.set_yscale("log")
    # down to a tenth of the smallest mass
    least = min(float(min(d["weights"])) for own in densities for d in own)
    panel.set_ylim(bottom=max(0.1 * least / width, 1e-12))
    style_axes(panel, "Eigenvalue of the Hessian", "Share of eigenvalues per unit of the axis,\nlogarithmic scale")
    plotting.legend(figure, style_of, (row.method for row in rows))
    return figure


def filters(comparison: Comparison, rows: Sequence[DiagnosisRow], narrow: bool = False) -> Figure:
    """Return the distribution of filter norms, all seeds of a method together (figure 4 of the RWP paper)."""
    figure, (panel,) = plotting.new_figure(1, 1, (11, 3.6), narrow=narrow)
    style_of = styles(comparison)
    quantiles = [[np.array(run.diagnosis["filters"]["quantiles"]) for run in row.runs] for row in rows]
    every = np.concatenate([q for own in quantiles for q in own])
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-9), 61)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    for order, (row, own) in enumerate(zip(rows, quantiles, strict=True)):
        # each of the equally spaced quantiles stands for an equal share of the filters
        shares = [100 * np.histogram(q, edges)[0] / len(q) for q in own]
        plotting.band(panel, middles, over_seeds(np.mean(shares, axis=0)[None]), style_of[row.method], order)
    title = f"Share of filters per {edges[1] - edges[0]:.2g}, %"
    style_axes(panel, "L2 norm of a filter (of a unit's incoming weights)", title)
    plotting.legend(figure, style_of, (row.method for row in rows))
    return figure


def scatter(
    comparison: Comparison, rows: Sequence[DiagnosisRow], notes: dict[str, str], narrow: bool = False
) -> Figure:
    """Return the test metric against each measure of sharpness, a point per run; ``notes`` go below the titles."""
    columns = 2 if narrow else 4
    count = -(-len(SHARPNESS) // columns)
    figure, panels = plotting.new_figure(count, columns, (NARROW if narrow else 11.5, 2.9 * count + 0.3))
    style_of = styles(comparison)
    for i, (panel, measure) in enumerate(zip(panels, SHARPNESS, strict=False)):
        values: list[float] = []
        for row in rows:
            pairs = [(measure.of(run), METRIC.of(run)) for run in row.runs]
            points = [(x, y) for x, y in pairs if x is not None and y is not None]
            values += [x for x, _ in points]
            style = style_of[row.method]
            mark: dict[str, Any] = {"marker": style.marker or "o", "color": style.light, "markersize": 5}
            panel.plot([x for x, _ in points], [y for _, y in points], linestyle="", **mark)
        title = with_settings(measure.name, rows[0])
        style_axes(panel, with_settings(measure.axis, rows[0]), f"{title}\n{notes[measure.name]}")
        if values and min(values) > 0 and max(values) > 50 * min(values):
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
        else:
            # with more ticks their numbers would overlap the next panel's
            panel.xaxis.set_major_locator(MaxNLocator(3 if narrow else 4, steps=[1, 2, 5, 10]))
        panel.margins(0.08)
        if i % columns == 0:
            panel.set_ylabel(with_settings(METRIC.name, rows[0]), fontsize=9, color=INK, parse_math=False)
        else:
            panel.set_yticklabels([])
    used = panels[: len(SHARPNESS)]
    heights = [p.get_ylim() for p in used]
    for panel in used:
        panel.set_ylim(min(a for a, _ in heights), max(b for _, b in heights))
    for panel in panels[len(SHARPNESS) :]:
        panel.set_visible(False)
    plotting.legend(figure, style_of, (row.method for row in rows), "point")
    return figure
