"""The loss between networks: along the lines between them, and on the triangle of three."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from steppe.report import plotting
from steppe.report.diagnosis.wording import Wording
from steppe.report.plotting import INK, label
from steppe.report.style import MARKERS

_COLORS = ("#0072b2", "#d55e00", "#009e73")


def write(content: dict[str, Any], out: Path) -> Path:
    """Write the figure into a folder and return its path.

    Raises:
        steppe.errors.RunError: The file cannot be written.
    """
    path = out / "between.svg"
    plotting.save(middle(content), path)
    return path


def middle(content: dict[str, Any]) -> Figure:
    """Return the loss along each segment, and on the triangle if there are three networks."""
    wording = Wording(unit=content.get("unit", "nats"))
    figure, (lines, *rest) = plotting.new_figure(1, 2 if content["triangle"] else 1, (11, 4.8))
    for marker, color, segment in zip(MARKERS, _COLORS, content["segments"], strict=False):
        ends = [label(segment[end]).strip() for end in ("from", "to")]
        name = f"{ends[0]} (0) to {ends[1]} (1): barrier {segment['barrier']:.3g}"
        options: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.6}
        lines.plot(segment["at"], plotting.numbers(segment["loss"]), label=name, **options)
    plotting.style_axes(
        lines, "Share of the second network in the mixture", wording.with_unit("Loss along the straight line")
    )
    key: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 9, "handlelength": 3.2}
    plotting.plain_legend(figure.legend(**key))
    if rest:
        _triangle(figure, rest[0], content, wording)
    return figure


def _triangle(figure: Figure, panel: Axes, content: dict[str, Any], wording: Wording) -> None:
    triangle = content["triangle"]
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    x, y = (np.array(triangle["at"]) @ corners).T
    losses = plotting.numbers(triangle["loss"])
    levels = plotting.levels(losses, highest=1)
    options: dict[str, Any] = {"levels": levels.at, "norm": levels.norm, "cmap": "viridis_r", "extend": "max"}
    contours = panel.tricontourf(Triangulation(x, y), plotting.clipped(losses, levels), **options)
    for (cx, cy), name, below in zip(corners, content["networks"], (True, True, False), strict=True):
        panel.plot(cx, cy, marker="o", color=INK, markersize=5, clip_on=False)
        options = {"ha": "center", "va": "top" if below else "bottom", "fontsize": 9, "color": INK}
        panel.text(cx, cy - 0.04 if below else cy + 0.04, label(name).strip(), **options, parse_math=False)
    plotting.style_axes(panel, "", f"Mixtures of all three: barrier {triangle['barrier']:.3g}{wording.after}")
    panel.set_axis_off()
    panel.set_aspect("equal")
    panel.set(xlim=(-0.25, 1.25), ylim=(-0.12, 1.02))
    plotting.color_bar(figure, contours, panel, wording.with_unit("Loss"), shrink=0.8)
