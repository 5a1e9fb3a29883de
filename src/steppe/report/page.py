"""The page of a comparison: one HTML file that needs no network, and the tables and figures beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from steppe.records import Comparison, load, write_text
from steppe.report import context, figures, tables
from steppe.report.rows import Row, groups, rows
from steppe.report.series import AXES, METRICS, Series, series
from steppe.report.style import outline, styles

_HERE = Path(__file__).parent


def write(folder: Path) -> Path:
    """Write ``report.html`` into the comparison's folder and return its path.

    Beside it are written ``table.csv``, ``table.md``, ``table.tex``, ``curves.svg``, ``curves.png`` and
    ``cost.svg``. A comparison under way can be reported too.

    Raises:
        steppe.errors.InputError: The folder is not that of a comparison, or is damaged.
        steppe.errors.RunError: A file cannot be written.
    """
    comparison = load(folder)
    table = rows(comparison)
    for name, text in (("csv", tables.csv), ("md", tables.markdown), ("tex", tables.latex)):
        write_text(comparison.folder / f"table.{name}", text(table))
    curves = figures.curves(comparison)
    figures.save(curves, comparison.folder / "curves.svg")
    figures.save(curves, comparison.folder / "curves.png")
    figures.save(figures.accuracy_cost(comparison), comparison.folder / "cost.svg")
    page = comparison.folder / "report.html"
    write_text(page, html(comparison, table))
    return page


def html(comparison: Comparison, table: list[Row]) -> str:
    """Return the page as text: everything inline, everything from runs escaped.

    A content security policy lets no other script run than the page's own and lets nothing load.
    """
    found = groups(comparison)
    # The page stays below a megabyte: the more lines, the fewer epochs of each.
    lines = max(1, len(found) * len(comparison.methods))
    parts = {g: [r for r in table if (r.dataset, r.model) == g] for g in found}
    drawn = {group: series(comparison, group, _within(2500 // lines, 200)) for group in found}
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    look = [asdict(style) | {"mark": outline(style.marker)} for style in styles(comparison).values()]
    loader = FileSystemLoader(_HERE, encoding="utf-8")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        **context.header(comparison),
        groups=[context.group(comparison, g, parts[g], drawn[g]) for g in found],
        several=len(found) > 1,
        failures=context.failures(comparison),
        fact_groups=context.facts(comparison),
        changed=context.changed(comparison),
        methods=context.methods(comparison),
        controls=context.controls(comparison),
        metrics=[(name, title.split(" (")[0].lower()) for name, title in METRICS.items()],
        axes=[(name, title.lower().replace("training ", "")) for name, title in AXES.items()],
        styles=look,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=Markup(digest),
        data=embedded(_data(comparison, look, list(drawn.values()))),
        static_curves=Markup(figures.inline(figures.curves(comparison, _within(900 // lines, 60)))),
    )


def embedded(content: Any) -> Markup:
    """Return JSON that can stand in a script element: no character in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _data(comparison: Comparison, look: list[dict[str, Any]], drawn: list[list[Series]]) -> dict[str, Any]:
    order = list(comparison.methods)
    return {
        "metrics": METRICS,
        "axes": AXES,
        "styles": [{key: style[key] for key in ("width", "dash", "mark")} for style in look],
        "groups": [
            [
                {
                    "style": order.index(line.method),
                    "n": line.n,
                    "x": {name: _short(values) for name, values in line.x.items()},
                    "y": {
                        name: {"mean": _short(b.mean), "low": _short(b.low), "high": _short(b.high)}
                        for name, b in line.y.items()
                    },
                }
                for line in lines
            ]
            for lines in drawn
        ],
    }


def _short(values: list[float | None]) -> list[float | None]:
    return [None if v is None else float(f"{v:.5g}") for v in values]


def _within(points: int, most: int) -> int:
    return max(8, min(points, most))


__all__ = ["embedded", "html", "write"]
