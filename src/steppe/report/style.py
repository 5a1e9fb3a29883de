"""Colour, dash and marker of each method, the same in every figure."""

from dataclasses import dataclass
from typing import Any

from matplotlib.markers import MarkerStyle

from steppe.records import Comparison
from steppe.report.comparison.summary import BASELINE, all_controls

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# Distinct for the common forms of colour blindness (after Okabe and Ito), each with a lighter twin for dark
# pages. Markers and dashes carry the same information without colour.
_HUES = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f5935a"),
    ("#009e73", "#45d1a6"),
    ("#aa3377", "#e58cc0"),
    ("#9a7400", "#e6c34f"),
    ("#5b4bb5", "#a99df0"),
    ("#c03a4b", "#ff8d97"),
    ("#2f8fa3", "#7fdbe6"),
)
_CONTROLS = (("#6f7782", "#a3acb8"), ("#96714a", "#cfa679"), ("#5f7f5a", "#a1c79a"))
_DASHES: tuple[tuple[float, ...], ...] = ((), (7, 2, 1.5, 2), (9, 3), (3, 1.5, 1, 1.5, 1, 1.5))
_CONTROL_DASHES: tuple[tuple[float, ...], ...] = ((5, 2.5), (2, 2), (6, 2, 2, 2))
_PLAIN = ("#2b2f36", "#e9ebee")

DARK = dict((_PLAIN, *_HUES, *_CONTROLS))
"""The colour on a dark page of each colour on a light one."""


@dataclass(frozen=True)
class Style:
    """Colours on light and dark pages, dash lengths (none: solid), marker, and line width in points."""

    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str
    width: float

    @property
    def line(self) -> dict[str, Any]:
        """Return dashes, width and marker as options of matplotlib's lines."""
        dashes = (0, self.dash) if self.dash else "-"
        width = 0.75 * self.width
        return {"linestyle": dashes, "linewidth": width, "marker": self.marker or None, "markersize": 4}

    @property
    def outline(self) -> str:
        """Return the marker's outline as SVG path data, about 1 wide and centred at the origin."""
        if not self.marker:
            return ""
        marker = MarkerStyle(self.marker)
        path = marker.get_path().transformed(marker.get_transform())
        letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
        parts = []
        for points, code in path.iter_segments(simplify=False):
            # SVG's y axis points down.
            numbers = [f"{v if i % 2 == 0 else -v:.3g}" for i, v in enumerate(points)]
            parts.append(letters[int(code)] + ("" if code == 79 else " ".join(numbers)))
        return "".join(parts)


def styles(comparison: Comparison) -> dict[str, Style]:
    """Return a style per method: plain in neutral grey, controls dashed, the first 8 others solid."""
    controls = all_controls(comparison)
    others = [m for m in comparison.methods if m != BASELINE and m not in controls]

    def style(method: str) -> Style:
        if method == BASELINE:
            return Style(*_PLAIN, (), "", 2.4)
        if method in controls:
            i = controls.index(method)
            dash = _CONTROL_DASHES[i % len(_CONTROL_DASHES)]
            return Style(*_CONTROLS[i % len(_CONTROLS)], dash, MARKERS[-1 - i % len(MARKERS)], 1.7)
        i = others.index(method)
        turn = i // len(_HUES)
        marker = MARKERS[(i + turn) % len(MARKERS)]
        return Style(*_HUES[i % len(_HUES)], _DASHES[turn % len(_DASHES)], marker, 1.7)

    return {method: style(method) for method in comparison.methods}
