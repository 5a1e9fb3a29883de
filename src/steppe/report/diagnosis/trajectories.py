"""Figures of runs on their way: sharpness over epochs, trajectories from one start, where they ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from steppe.records import Comparison
from steppe.report.comparison.figures import INK, dress, label
from steppe.report.diagnosis.summary import DiagnosisRow
from steppe.report.plotting import band, ground, keys, legend, number, panels_of
from steppe.report.style import styles


def ends(comparison: Comparison, found: dict[str, Any]) -> Figure:
    """Return the plane through the start and the ends of one seed's runs, and the loss along straight paths.

    The plane is that of the first two principal components (figures 2 to 5 of the OKDPH paper's supplement).
    """
    figure, panels = panels_of(1, 2, (11, 5))
    look = styles(comparison)
    plane, paths = panels
    ground(figure, plane, found, ways="Start and ends of one seed")
    start, *places = found["places"]
    plane.plot(*start, marker="+", color=INK, markersize=12, markeredgewidth=2, linestyle="")
    plane.annotate("start", start, (7, -11), textcoords="offset points", fontsize=9, color=INK)
    for method, place in zip(found["methods"], places, strict=True):
        style = look[method]
        plane.plot([start[0], place[0]], [start[1], place[1]], color=style.light, linewidth=0.8, alpha=0.6)
        plane.plot(*place, marker=style.marker or "o", color=style.light, markersize=9, markeredgecolor="white")
    for order, (method, path) in enumerate(found["paths"].items()):
        values = np.array([[number(v) for v in path["loss"]]])
        along = np.linspace(0, 1, values.shape[1]).tolist()
        band(paths, along, values, look[method], method, order, every=2)
    first = label(found["methods"][0]).strip()
    dress(paths, f"From {first} (0) straight to the method (1)", "Loss along the way, nats")
    keys(figure, look, found["methods"])
    return figure


def trajectories(comparison: Comparison, found: dict[str, Any]) -> Figure:
    """Return the ways of one seed's runs from their common start, on the plane that holds most of them.

    A dot is an epoch whose weights were kept, the large mark the last one.
    """
    figure, (panel,) = panels_of(1, 1, (11, 6.4))
    look = styles(comparison)
    ground(
        figure,
        panel,
        found,
        ways="Weights of one seed's runs on their way: a dot per epoch kept, the last one large",
    )
    for track in found["tracks"]:
        style = look[track["method"]]
        x, y = np.array(track["places"]).T
        dash: Any = (0, style.dash) if style.dash else "-"
        panel.plot(x, y, color=style.light, linewidth=1.6, linestyle=dash, marker="o", markersize=3)
        panel.plot(
            x[-1], y[-1], marker=style.marker or "o", color=style.light, markersize=9, markeredgecolor="white"
        )
    start = found["tracks"][0]["places"][0]
    panel.plot(*start, marker="+", color=INK, markersize=13, markeredgewidth=2, linestyle="", zorder=5)
    panel.annotate("start", start, (7, -11), textcoords="offset points", fontsize=9, color=INK)
    drawn = list(dict.fromkeys(track["method"] for track in found["tracks"]))
    keys(figure, look, drawn)
    return figure


def over_epochs(comparison: Comparison, rows: Sequence[DiagnosisRow]) -> Figure | None:
    """Return SAM's sharpness while the runs trained: mean over seeds, band from lowest to highest.

    None if no run was watched (`Watch.sharpness`). Only epochs that every seed of a method has are drawn (SAF,
    figure 3b).
    """
    figure, (panel,) = panels_of(1, 1, (11, 4.4))
    look = styles(comparison)
    drawn = []
    for order, row in enumerate(rows):
        seen = [
            {line["epoch"]: number(line["sharpness"]) for line in run.record.metrics if "sharpness" in line}
            for run in row.runs
        ]
        epochs = sorted(set.intersection(*map(set, seen)))
        if epochs:
            band(
                panel,
                epochs,
                np.array([[s[e] for e in epochs] for s in seen]),
                look[row.method],
                row.method,
                order,
            )
            drawn.append(row)
    if not drawn:
        return None
    dress(panel, "Epoch", "SAM sharpness of what is deployed, on training images: rise of the loss, nats")
    legend(figure, look, drawn)
    return figure
