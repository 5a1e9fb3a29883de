"""The page of a comparison: one HTML file that needs no network, and the tables and figures beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from steppe.records import Comparison, load, write_text
from steppe.report import formatting
from steppe.report.comparison import (
    _config_diff,
    _results,
    _template_context,
    deployables,
    equal_budget,
    figures,
    tables,
)
from steppe.report.comparison.curves import AXES, METRICS, Series, series
from steppe.report.comparison.summary import ResultRow, groups, rows
from steppe.report.style import outline, styles

_REPORT = Path(__file__).parents[1]
_SCRIPTS = ("base.js", "table.js", "chart.js", "page.js", "export.js", "start.js")
DIAGNOSIS = "diagnosis.html"
# What is put into the page to be saved from it, and lies beside it too: name, what it is called, its type.
_DOWNLOADS = (
    ("table.csv", "CSV", "text/csv"),
    ("table.md", "Markdown", "text/markdown"),
    ("table.tex", "LaTeX", "application/x-tex"),
    ("budgets.csv", "accuracies at equal budgets, as CSV", "text/csv"),
    ("outputs.csv", "everything that can be deployed, as CSV", "text/csv"),
)


@dataclass(frozen=True)
class Live:
    """What a page that follows runs under way knows: the state of the records it shows, and how far they are."""

    version: str
    progress: str


def write(folder: Path) -> Path:
    """Write ``report.html`` into the comparison's folder and return its path.

    Beside it are written ``table.csv``, ``table.md``, ``table.tex``, ``curves.svg``, ``curves.png``, ``cost.svg``,
    ``budgets.csv`` once a run has finished, and ``outputs.csv`` where a method can deploy more than one thing. A
    comparison under way can be reported too.

    Raises:
        steppe.errors.InputError: The folder is not that of a comparison, or is damaged.
        steppe.errors.RunError: A file cannot be written.
    """
    comparison = load(folder)
    table = rows(comparison)
    beside = files(comparison, table)
    for name, content in beside.items():
        write_text(comparison.folder / name, content)
    curves = figures.curves(comparison)
    figures.save(curves, comparison.folder / "curves.svg")
    figures.save(curves, comparison.folder / "curves.png")
    figures.save(figures.accuracy_cost(comparison), comparison.folder / "cost.svg")
    page = comparison.folder / "report.html"
    write_text(page, html(comparison, table, beside))
    return page


def files(comparison: Comparison, table: list[ResultRow]) -> dict[str, str]:
    """Return the tables that lie beside the page and can be saved from it, by name."""
    found = {"table.csv": tables.csv(table), "table.tex": tables.latex(table)}
    parts = deployables.parts(comparison)
    found["table.md"] = "\n".join(filter(None, [tables.markdown(table), deployables.markdown(parts)]))
    found |= {"budgets.csv": equal_budget.csv(comparison)} if any(row.ok for row in table) else {}
    return found | ({"outputs.csv": deployables.csv(parts)} if parts else {})


def html(comparison: Comparison, table: list[ResultRow], beside: dict[str, str], live: Live | None = None) -> str:
    """Return the page as text: everything inline, everything from runs escaped; ``beside`` can be saved from it.

    A content security policy lets no other script run than the page's own and lets nothing load; a page that
    follows runs may ask the server it came from, and nobody else.
    """
    found = groups(comparison)
    # The page stays small: the more lines, the fewer epochs of each.
    lines = max(1, len(found) * len(comparison.methods))
    parts = {g: [r for r in table if (r.dataset, r.model) == g] for g in found}
    drawn = {group: series(comparison, group, _within(2500 // lines, 200)) for group in found}
    script = _script((*_SCRIPTS, "live.js") if live else _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    look = [asdict(style) | {"mark": outline(style.marker)} for style in styles(comparison).values()]
    shown = [_template_context.group(comparison, g, parts[g], drawn[g]) for g in found]
    offered = {t["mode"] for g in shown for t in g["tables"]}
    loader = FileSystemLoader(_REPORT / "templates", encoding="utf-8")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        **_template_context.header(comparison),
        groups=shown,
        several=len(found) > 1,
        modes=[(mode, name) for mode, name in _results.MODES.items() if mode in offered],
        titles=_results.MODES,
        watched=any(row.best_of_all for row in table),
        best_of_all=formatting.BEST_OF_ALL,
        about_best_of_all=formatting.ABOUT_BEST_OF_ALL,
        deployable=_template_context.deployable(comparison),
        deploy_title=deployables.TITLE,
        deploy_note=deployables.NOTE,
        failures=_template_context.failures(comparison),
        fact_groups=_template_context.facts(comparison),
        changed=_template_context.changed(comparison),
        run_differences=_config_diff.of_runs(comparison),
        methods=_template_context.methods(comparison),
        controls=_template_context.controls(comparison),
        folders=_template_context.folders(comparison),
        diagnosis=DIAGNOSIS if (comparison.folder / DIAGNOSIS).exists() else "",
        downloads=_downloads(beside),
        metrics=[(name, title.split(" (")[0].lower()) for name, title in METRICS.items()],
        styles=look,
        css=Markup((_REPORT / "static" / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=Markup(digest),
        data=embedded(_data(comparison, look, list(drawn.values()), shown)),
        static_curves="" if live else _static_curves(comparison, lines),
        live=live,
    )


def embedded(content: Any) -> Markup:
    """Return JSON that can stand in a script element: no character in it can end the element."""
    shown = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        shown = shown.replace(character, f"\\u{ord(character):04x}")
    return Markup(shown)


def _script(names: tuple[str, ...]) -> str:
    parts = [(_REPORT / "static" / name).read_text(encoding="utf-8") for name in names]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _static_curves(comparison: Comparison, lines: int) -> Markup:
    """Return the curves for readers whose browser runs no script."""
    return Markup(figures.inline(figures.curves(comparison, _within(900 // lines, 60))))


def _downloads(content: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return name, label and address of each file, the address holding the file itself."""
    return [
        (name, label, f"data:{kind};charset=utf-8;base64,{base64.b64encode(content[name].encode()).decode()}")
        for name, label, kind in _DOWNLOADS
        if name in content
    ]


def _data(
    comparison: Comparison, look: list[dict[str, Any]], drawn: list[list[Series]], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    order = list(comparison.methods)
    return {
        "metrics": METRICS,
        "axes": AXES,
        "axis": comparison.study.get("match") if comparison.study.get("match") in AXES else "epochs",
        "styles": [{key: style[key] for key in ("width", "dash", "mark")} for style in look],
        "budgets": [{t["mode"]: t["amount"] for t in g["tables"] if "amount" in t} for g in shown],
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


__all__ = ["Live", "embedded", "files", "html", "write"]
