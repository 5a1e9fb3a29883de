"""The figure of what lies between networks: straight ways and a triangle, with the barriers on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from steppe.report.comparison import figures
from steppe.report.comparison.figures import INK, dress, label
from steppe.report.plotting import number, panels_of
from steppe.report.style import MARKERS

PICTURE = "between.svg"


def write(found: dict[str, Any], out: Path) -> Path:
    """Write the figure into a folder and return its path; raises RunError if it cannot be written."""
    figures.save(middle(found), out / PICTURE)
    return out / PICTURE


def middle(found: dict[str, Any]) -> Figure:
    """Return the loss along each segment, and on the triangle if there are three networks."""
    three = found["triangle"] is not None
    figure, panels = panels_of(1, 2 if three else 1, (11, 4.8))
    ways = panels[0]
    for marker, colour, way in zip(MARKERS, ("#0072b2", "#d55e00", "#009e73"), found["segments"], strict=False):
        name = f"{label(way['from']).strip()} (0) to {label(way['to']).strip()} (1): barrier {way['barrier']:.3g}"
        ways.plot(
            way["at"],
            [number(v) for v in way["loss"]],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            label=name,
        )
    dress(ways, "Share of the second network in the mixture", "Loss along the straight way, nats")
    key = figure.legend(loc="outside lower center", frameon=False, fontsize=9, handlelength=3.2)
    for entry in key.get_texts():
        entry.set_parse_math(False)
    if not three:
        return figure
    panel, triangle = panels[1], found["triangle"]
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    x, y = (np.array(triangle["at"]) @ corners).T
    losses = np.array([number(v) for v in triangle["loss"]])
    finite = losses[np.isfinite(losses)]
    levels = np.linspace(finite.min(), finite.max() if finite.max() > finite.min() else finite.min() + 1, 15)
    held = np.nan_to_num(losses, nan=float(levels[-1]))
    drawn = panel.tricontourf(Triangulation(x, y), held, levels=levels, cmap="viridis_r", extend="max")
    for (cx, cy), name, below in zip(corners, found["networks"], (True, True, False), strict=True):
        panel.plot(cx, cy, marker="o", color=INK, markersize=5, clip_on=False)
        about: dict[str, Any] = {"ha": "center", "va": "top" if below else "bottom", "fontsize": 9, "color": INK}
        panel.text(cx, cy - 0.04 if below else cy + 0.04, label(name).strip(), **about, parse_math=False)
    dress(panel, "", f"Mixtures of all three: barrier {triangle['barrier']:.3g} nats")
    panel.set_axis_off()
    panel.set_aspect("equal")
    panel.set(xlim=(-0.25, 1.25), ylim=(-0.12, 1.02))
    bar = figure.colorbar(drawn, ax=panel, shrink=0.8, format="%.2f")
    bar.set_label("Loss, nats", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return figure
