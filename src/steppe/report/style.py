"""How each method is drawn, the same in every figure: colour, dash and marker tell it apart."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.markers import MarkerStyle

from steppe.records import Comparison
from steppe.report.comparison.summary import BASELINE, all_controls

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# Hues that stay apart for the common forms of colour blindness (after Okabe and Ito), each with a lighter
# twin for dark pages; markers and dashes carry the same information without colour.
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


@dataclass(frozen=True)
class Style:
    """Colour on a light and on a dark ground, dash lengths (none: solid), marker and line width in points."""

    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str
    width: float


def styles(comparison: Comparison) -> dict[str, Style]:
    """Return a style per method: plain in neutral grey, controls dashed, all others solid for the first 8."""
    controls = all_controls(comparison)
    found: dict[str, Style] = {}
    others = control = 0
    for method in comparison.methods:
        if method == BASELINE:
            found[method] = Style("#2b2f36", "#e9ebee", (), "", 2.4)
        elif method in controls:
            light, dark = _CONTROLS[control % len(_CONTROLS)]
            dash = _CONTROL_DASHES[control % len(_CONTROL_DASHES)]
            found[method] = Style(light, dark, dash, MARKERS[-1 - control % len(MARKERS)], 1.7)
            control += 1
        else:
            light, dark = _HUES[others % len(_HUES)]
            turn = others // len(_HUES)
            marker = MARKERS[(others + turn) % len(MARKERS)]
            found[method] = Style(light, dark, _DASHES[turn % len(_DASHES)], marker, 1.7)
            others += 1
    return found


def outline(marker: str) -> str:
    """Return the marker's outline as SVG path data, about 1 wide and centred on the origin."""
    if not marker:
        return ""
    shape = MarkerStyle(marker)
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for points, code in shape.get_path().transformed(shape.get_transform()).iter_segments(simplify=False):
        # SVG's y axis points down.
        numbers = [f"{v if i % 2 == 0 else -v:.3g}" for i, v in enumerate(points)]
        parts.append(letters[int(code)] + ("" if code == 79 else " ".join(numbers)))
    return "".join(parts)
