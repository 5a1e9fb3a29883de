"""What all figures of the reports share: axes, bands over seeds, keys, colour bars and saving.

Nothing here needs a display or changes matplotlib's global state.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steppe.records import write_text
from steppe.report.formatting import plain_text
from steppe.report.style import DARK, Style

INK, FAINT = "#2b2f36", "#d9dce1"
NARROW = 4.2  # inches: on a telephone the text of such a figure keeps about its size

_SHADE = 0.6  # of ink in the darkest shade, so that lines and marks can be seen on it
_END = tuple(1 - _SHADE * (1 - int(INK[i : i + 2], 16) / 255) for i in (1, 3, 5))
SHADES = LinearSegmentedColormap.from_list("shades", [(1.0, 1.0, 1.0), _END])
"""Shades from the page's ground to its ink, as a background of coloured lines."""


class Levels(NamedTuple):
    """Levels of a loss by rising value, and whether they are equally spaced on a logarithmic scale."""

    at: np.ndarray
    log: bool

    @property
    def norm(self) -> Normalize:
        """Return the scale of colour."""
        return (LogNorm if self.log else Normalize)(self.at[0], self.at[-1])


def new_figure(
    rows: int,
    columns: int,
    size: tuple[float, float],
    widths: Sequence[float] | None = None,
    narrow: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``size`` inches and its panels in reading order; if ``narrow``, one below the other."""
    if narrow:
        rows, columns, widths = rows * columns, 1, None
        size = (NARROW, rows * 3.4 + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, width_ratios=widths).flat)


def style_axes(panel: Axes, x: str, title: str) -> None:
    """Give a panel its title, the name of its horizontal axis and the report's style."""
    lines = "\n".join(plain_text(line) for line in title.split("\n"))
    panel.set_title(lines, loc="left", fontsize=10.5, color=INK, parse_math=False)
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.tick_params(which="both", colors=INK, labelsize=9, length=0)
    if panel.get_figure().get_figwidth() <= NARROW:  # type: ignore[union-attr]
        panel.locator_params(axis="x", nbins=5)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)


def label(method: str) -> str:
    """Return a method's name as a legend prints it."""
    # matplotlib leaves labels that begin with an underscore out of legends.
    name = plain_text(method)
    return f" {name}" if name.startswith("_") else name


def band(
    panel: Axes, x: Sequence[float] | np.ndarray, values: np.ndarray, style: Style, order: int, every: int = 0
) -> None:
    """Draw a mean with its band and a marker at each ``every``-th point; ``values`` are mean, lowest, highest."""
    mean, low, high = values
    panel.fill_between(x, low, high, color=style.light, alpha=0.10, linewidth=0)
    # Different lines have their markers at different points; at one point they would cover each other.
    step = every or max(1, len(x) // 6)
    options = style.line | {"markevery": (order % step, step)}
    if len(x) == 1 and not style.marker:
        options |= {"marker": "o"}  # a line of one point cannot be seen
    # Plain, which is the widest, is drawn above the others.
    panel.plot(x, mean, color=style.light, zorder=2 + style.width, **options)


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Return mean, lowest and highest over seeds of an array of seeds by points."""
    return np.stack([values.mean(0), values.min(0), values.max(0)])


def filled_contour(
    panel: Axes, x: Sequence[float], y: Sequence[float], losses: np.ndarray, levels: Levels, **options: Any
) -> Any:
    """Draw a loss on a plane; what is not finite has the highest level's colour."""
    values = clipped(losses, levels)
    return panel.contourf(x, y, values, levels=levels.at, norm=levels.norm, extend="max", **options)


def color_bar(figure: Figure, contours: Any, panels: Axes | list[Axes], title: str, **options: Any) -> None:
    """Add the scale of a filled contour."""
    narrow = figure.get_figwidth() <= NARROW
    options |= {"location": "bottom", "aspect": 30, "shrink": 0.9} if narrow else {}
    ticks = contours.levels[:: 4 if narrow else 2]
    bar = figure.colorbar(contours, ax=panels, format=lambda v, _: f"{v:.3g}", ticks=ticks, **options)
    bar.ax.minorticks_off()
    bar.set_label(title, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def legend(
    figure: Figure,
    styles: Mapping[str, Style],
    methods: Iterable[str],
    kind: Literal["line", "bar", "point"] = "line",
    **options: Any,
) -> None:
    """Write the key of the methods, below the figure unless ``options`` say otherwise."""

    def handle(style: Style) -> Artist:
        if kind == "bar":
            return Patch(facecolor=style.light, hatch="////" if style.dash else None, edgecolor="white")
        if kind == "point":
            return Line2D([], [], color=style.light, linestyle="", marker=style.marker or "o")
        return Line2D([], [], color=style.light, **style.line)

    names = list(methods)
    defaults: dict[str, Any] = {"loc": "outside lower center", "ncols": min(len(names), 6), "fontsize": 9}
    if figure.get_figwidth() <= NARROW:
        defaults["ncols"] = min(len(names), 2)
    defaults |= {"frameon": False, "handlelength": 3.2, "labelcolor": INK}
    handles, labels = [handle(styles[m]) for m in names], [label(m) for m in names]
    plain_legend(figure.legend(handles, labels, **defaults | options))


def plain_legend(key: Any) -> None:
    """Print the texts of a legend as they are, dollar signs included."""
    for entry in key.get_texts():
        entry.set_parse_math(False)


def numbers(values: Any) -> np.ndarray:
    """Return values read from JSON as an array; null is NaN."""
    return np.array(values, dtype=float)


def clipped(losses: np.ndarray, levels: Levels) -> np.ndarray:
    """Return losses for contours: none below the levels, and one above them for each that is not finite."""
    above = levels.at[-1] + 2 * (levels.at[-1] - levels.at[0])
    return np.clip(np.where(np.isfinite(losses), losses, above), levels.at[0], above)


def wide(lowest: float, highest: float) -> bool:
    """Return whether losses span so much that only a logarithmic scale shows the low ones.

    That is a ratio above 20; losses below 0.001 nats count as 0.001, and negative ones have no logarithm.
    """
    return bool(lowest >= 0 and highest > 20 * max(lowest, 1e-3))


def levels(losses: np.ndarray, highest: float = 0.9) -> Levels:
    """Return 15 levels of colour from the lowest finite loss to the ``highest`` quantile of the finite ones.

    They are equally spaced, or by a constant factor where that range is ``wide``. Then they begin at 0.001 nats
    or above and span four decades at most: a plane's far rim can have losses without end, and the minimum has to
    keep some levels. One loss for all, or none that is finite, has levels from it (from 0) to 1 above.
    """
    present = losses[np.isfinite(losses)]
    low, high = (float(present.min()), float(np.quantile(present, highest))) if present.size else (0.0, 0.0)
    if wide(low, high):
        low = max(low, 1e-3)
        return Levels(np.geomspace(low, min(high, 1e4 * low), 15), log=True)
    if high - low <= 1e-9 * abs(high):
        high = low + max(1.0, abs(low))
    return Levels(np.linspace(low, high, 15), log=False)


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


def svg(figure: Figure, outlines: bool = False, salt: str = "steppe") -> str:
    """Return the figure as SVG text, equal for equal figures; with live text unless ``outlines``.

    Names within figures of different ``salt`` differ.
    """
    file = io.StringIO()
    options: Any = {"svg.fonttype": "path" if outlines else "none", "svg.hashsalt": salt}
    with matplotlib.rc_context(options):
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=about, facecolor="white")
    return file.getvalue()


def inline(figure: Figure, salt: str = "steppe") -> str:
    """Return the figure as an SVG element for a page, in the page's colours (light or dark) and font."""
    text = svg(figure, salt=salt)
    text = text[text.index("<svg") :]
    # A page looks nothing up: no name spaces.
    text = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text)
    text = re.sub(r"(font: (?:\w+ )*[\d.]+px) [^;\"]*", r"\1 var(--sans)", text)
    for color, variable in {"#ffffff": "--card", FAINT: "--line", **{c: f"--{c[1:]}" for c in DARK}}.items():
        text = text.replace(f": {color}", f": var({variable}, {color})")
    return re.sub(r": (#[0-9a-f]{6})", lambda match: f": {_SHARES.get(match[1], match[1])}", text)


_SHARES = {
    to_hex(SHADES(i)): f"color-mix(in srgb, var(--{INK[1:]}, {INK}) {100 * _SHADE * i / 255:.1f}%, var(--card))"
    for i in range(1, 256)
}
