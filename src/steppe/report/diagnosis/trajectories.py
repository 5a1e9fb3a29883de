"""Figures of runs during training: sharpness over epochs, trajectories from one start, and their ends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from steppe.records import Comparison
from steppe.report import plotting
from steppe.report.diagnosis.summary import DiagnosisRow
from steppe.report.diagnosis.wording import WORDING, Wording
from steppe.report.plotting import INK, label, numbers, over_seeds
from steppe.report.style import Style, styles


def ends(
    comparison: Comparison, content: dict[str, Any], wording: Wording = WORDING, narrow: bool = False
) -> Figure:
    """Return the plane through the start and the ends of one seed's runs, and the loss along straight lines.

    The plane is that of the first two principal components (figures 2 to 5 of the OKDPH paper's supplement).
    """
    figure, (plane, lines) = plotting.new_figure(1, 2, (11, 5), narrow=narrow)
    style_of = styles(comparison)
    _background(figure, plane, content, "Start and ends of one seed", wording)
    start, *places = content["places"]
    _start(plane, start)
    for method, place in zip(content["methods"], places, strict=True):
        x, y = zip(start, place, strict=True)
        plane.plot(x, y, color=style_of[method].light, linewidth=0.8, alpha=0.6)
        _end(plane, place, style_of[method])
    for order, (method, path) in enumerate(content["paths"].items()):
        values = numbers([path["loss"]])
        along = np.linspace(0, 1, values.shape[1]).tolist()
        plotting.band(lines, along, over_seeds(values), style_of[method], order, every=2)
    first = label(content["methods"][0]).strip()
    plotting.style_axes(
        lines, f"From {first} (0) straight to the method (1)", wording.with_unit("Loss along the line")
    )
    plotting.legend(figure, style_of, content["methods"])
    return figure


def trajectories(
    comparison: Comparison, content: dict[str, Any], wording: Wording = WORDING, narrow: bool = False
) -> Figure:
    """Return the trajectories of one seed's runs, on the plane closest to all of them.

    A dot is an epoch whose weights were saved, the large mark the last one. The first run's start is marked.
    """
    figure, (panel,) = plotting.new_figure(1, 1, (11, 6.4), narrow=narrow)
    style_of = styles(comparison)
    title = "Weights of one seed's runs:\none dot per saved epoch, the last one large"
    _background(figure, panel, content, title, wording)
    for track in content["tracks"]:
        style = style_of[track["method"]]
        x, y = np.array(track["places"]).T
        panel.plot(x, y, color=style.light, **style.line | {"linewidth": 1.6, "marker": "o", "markersize": 3})
        _end(panel, (x[-1], y[-1]), style)
    _start(panel, content["tracks"][0]["places"][0])
    plotting.legend(figure, style_of, dict.fromkeys(track["method"] for track in content["tracks"]))
    return figure


def with_sharpness(rows: Sequence[DiagnosisRow]) -> dict[str, dict[int, list[float]]]:
    """Return SAM's sharpness by method and epoch, a number per seed (see `Watch.sharpness`).

    Only epochs that every seed of a method has, and methods that have such an epoch.
    """
    methods = {}
    for row in rows:
        by_epoch = [
            {line["epoch"]: line["sharpness"] for line in run.record.metrics if "sharpness" in line}
            for run in row.runs
        ]
        if epochs := sorted(set.intersection(*map(set, by_epoch))):
            methods[row.method] = {e: [sharpness[e] for sharpness in by_epoch] for e in epochs}
    return methods


def over_epochs(
    comparison: Comparison,
    methods: dict[str, dict[int, list[float]]],
    wording: Wording = WORDING,
    narrow: bool = False,
) -> Figure:
    """Return SAM's sharpness during training: mean over seeds, band from the lowest to the highest.

    ``methods`` are those of `with_sharpness` (SAF, figure 3b).
    """
    figure, (panel,) = plotting.new_figure(1, 1, (11, 4.4), narrow=narrow)
    style_of = styles(comparison)
    for order, (method, values) in enumerate(methods.items()):
        plotting.band(panel, [*values], over_seeds(numbers([*values.values()]).T), style_of[method], order)
    title = f"SAM sharpness on training {wording.samples}:\n{wording.with_unit('rise of the loss')}"
    plotting.style_axes(panel, "Epoch", title)
    panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    plotting.legend(figure, style_of, methods)
    return figure


def _background(figure: Figure, panel: Axes, content: dict[str, Any], title: str, wording: Wording) -> None:
    """Draw the loss on a plane of principal components, in shades, with axes that name their explained variance.

    The scale is that of `plotting.levels`; what is above has the strongest shade.
    """
    losses = numbers(content["loss"])
    levels = plotting.levels(losses)
    options: dict[str, Any] = {"levels": levels, "cmap": plotting.SHADES}
    contours = plotting.filled_contour(panel, content["xs"], content["ys"], losses, **options)
    first, second = (f"{100 * share:.0f} %" for share in content["explained"])
    plotting.style_axes(panel, f"First component, distance in weights\n({first} of the variance)", title)
    panel.set_ylabel(f"Second component ({second} of the variance)", fontsize=9, color=INK)
    panel.grid(visible=False)
    plotting.color_bar(figure, contours, panel, wording.with_unit("Loss on the plane"), shrink=0.85, pad=0.02)


def _start(panel: Axes, place: Sequence[float]) -> None:
    # legible on any shade
    rim = [withStroke(linewidth=3.5, foreground="white")]
    style: dict[str, Any] = {"color": INK, "path_effects": rim, "zorder": 5}
    panel.plot(*place, marker="+", markersize=12, markeredgewidth=2, linestyle="", **style)
    panel.annotate("start", (place[0], place[1]), (7, -11), textcoords="offset points", fontsize=9, **style)


def _end(panel: Axes, place: Sequence[float], style: Style) -> None:
    panel.plot(*place, marker=style.marker or "o", color=style.light, markersize=9, markeredgecolor="white")
