"""What all figures of the reports share: axes, bands over seeds, keys, colour bars and saving.

Nothing here needs a display or changes matplotlib's global state.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steppe.records import write_text
from steppe.report.formatting import plain_text
from steppe.report.style import DARK, Style

INK, FAINT = "#2b2f36", "#d9dce1"


def new_figure(
    rows: int, columns: int, size: tuple[float, float], widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``size`` inches and its panels in reading order."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, width_ratios=widths).flat)


def style_axes(panel: Axes, x: str, title: str) -> None:
    """Give a panel its title, the name of its horizontal axis and the report's style."""
    lines = "\n".join(plain_text(line) for line in title.split("\n"))
    panel.set_title(lines, loc="left", fontsize=10.5, color=INK, parse_math=False)
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.tick_params(colors=INK, labelsize=9, length=0)
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
    # Plain, which is the widest, is drawn above the others.
    panel.plot(x, mean, color=style.light, zorder=2 + style.width, **options)


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Return mean, lowest and highest over seeds of an array of seeds by points."""
    return np.stack([values.mean(0), values.min(0), values.max(0)])


def filled_contour(panel: Axes, x: Sequence[float], y: Sequence[float], losses: np.ndarray, **options: Any) -> Any:
    """Draw a loss on a plane; what is not finite has the highest level's colour."""
    return panel.contourf(x, y, finite(losses), extend="max", **options)


def color_bar(figure: Figure, contours: Any, panels: Axes | list[Axes], title: str, **options: Any) -> None:
    """Add the scale of a filled contour."""
    bar = figure.colorbar(contours, ax=panels, format="%.2f", **options)
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


def finite(losses: np.ndarray) -> np.ndarray:
    """Return the losses with a large number for each that is not finite, as contours need."""
    return np.minimum(np.where(np.isfinite(losses), losses, np.inf), 1e9)


def levels(losses: np.ndarray, highest: float = 0.9) -> np.ndarray:
    """Return 15 levels of colour from the lowest finite loss to the ``highest`` quantile of the finite ones."""
    present = losses[np.isfinite(losses)]
    low, high = present.min(), np.quantile(present, highest)
    return np.linspace(low, high if high > low else low + 1, 15)


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
    """Return the figure as an SVG element for a page, in the page's colours (light or dark) and font."""
    text = svg(figure)
    text = text[text.index("<svg") :]
    # A page looks nothing up: no name spaces.
    text = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text)
    text = re.sub(r"(font: (?:\w+ )*[\d.]+px) [^;\"]*", r"\1 var(--sans)", text)
    for color, variable in {"#ffffff": "--card", FAINT: "--line", **{c: f"--{c[1:]}" for c in DARK}}.items():
        text = text.replace(f": {color}", f": var({variable}, {color})")
    return text
