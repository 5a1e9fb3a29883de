"""The page of a comparison: one HTML file that needs no network, with tables and figures as further files."""

import base64
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from steppe.records import Comparison, load, write_text
from steppe.report import _html, plotting
from steppe.report.comparison import classes, curves, deployables, equal_budget, pareto, tables
from steppe.report.comparison._template_context import context
from steppe.report.comparison.summary import ResultRow, decimals, groups, metric_of, metric_of_all, rows
from steppe.report.metric_text import MetricText
from steppe.report.style import styles

DIAGNOSIS = "diagnosis.html"
# The files that can be saved from the page: name, label, type.
_DOWNLOADS = (
    ("table.csv", "CSV", "text/csv"),
    ("table.md", "Markdown", "text/markdown"),
    ("table.tex", "LaTeX", "application/x-tex"),
    ("budgets.csv", "{} at equal budgets, as CSV", "text/csv"),
    ("outputs.csv", "everything that can be deployed, as CSV", "text/csv"),
    ("classes.csv", "accuracies of classes, as CSV", "text/csv"),
)


def write(folder: Path) -> Path:
    """Write ``report.html`` into the comparison's folder and return its path.

    Also written are ``table.csv``, ``table.md``, ``table.tex``, ``curves.svg`` and ``curves.png``; once a run has
    finished ``budgets.csv`` and ``cost.svg``; ``outputs.csv`` where a method can deploy more than one thing, and
    ``classes.csv`` where the records have accuracies of classes. A comparison whose runs have not all finished can
    be reported too.

    Raises:
        steppe.errors.InputError: The folder is not that of a comparison, or is damaged.
        steppe.errors.RunError: A file cannot be written.
    """
    comparison = load(folder)
    table = rows(comparison)
    for name, content in files(comparison, table).items():
        write_text(comparison.folder / name, content)
    drawing = curves.figure(comparison)
    plotting.save(drawing, comparison.folder / "curves.svg")
    plotting.save(drawing, comparison.folder / "curves.png")
    if cost := pareto.figure(comparison):
        plotting.save(cost, comparison.folder / "cost.svg")
    page = comparison.folder / "report.html"
    write_text(page, html(comparison, table))
    return page


def files(comparison: Comparison, table: list[ResultRow]) -> dict[str, str]:
    """Return the tables that are written next to the page and can be saved from it, by name."""
    parts = deployables.parts(comparison)
    markdown = "\n".join(filter(None, [tables.markdown(table), deployables.markdown(parts)]))
    content = {"table.csv": tables.csv(table), "table.md": markdown, "table.tex": tables.latex(table)}
    content |= {"budgets.csv": equal_budget.csv(comparison)} if any(row.ok for row in table) else {}
    content |= {"outputs.csv": deployables.csv(parts)} if parts else {}
    of_classes = classes.tables(comparison)
    return content | ({"classes.csv": classes.csv(of_classes)} if of_classes else {})


def html(comparison: Comparison, table: list[ResultRow], version: str = "") -> str:
    """Return the page as text.

    With a ``version`` (a name of the records' present state) the page is a live one: it asks the server that it
    came from for the version, and reloads when that has changed.
    """
    # The page stays small: the more lines, the fewer epochs of each.
    lines = max(1, len(groups(comparison)) * len(comparison.methods))
    series = {g: curves.series(comparison, g, max(8, min(2500 // lines, 200))) for g in groups(comparison)}
    static = "" if version else plotting.inline(curves.figure(comparison, max(8, min(900 // lines, 60))))
    wide, narrow = pareto.figure(comparison), pareto.figure(comparison, narrow=True)
    content = context(comparison, table, series)
    order = {method: i for i, method in enumerate(comparison.methods)}
    style_list = list(styles(comparison).values())
    match = comparison.study.get("match")
    data = {
        "metrics": [about_curves(comparison, group) for group in series],
        "axes": curves.AXES,
        "axis": match if match in curves.AXES else "epochs",
        "styles": [{"width": s.width, "dash": s.dash, "mark": s.outline} for s in style_list],
        "budgets": [{t["mode"]: t["amount"] for t in g["tables"] if "amount" in t} for g in content["groups"]],
        "groups": [
            [_html.rounded(asdict(c) | {"style": order[c.method]}) for c in own] for own in series.values()
        ],
    }
    return _html.render(
        "page.html.j2",
        comparison,
        "page.js",
        data,
        **content,
        diagnosis=DIAGNOSIS if (comparison.folder / DIAGNOSIS).exists() else "",
        downloads=_downloads(files(comparison, table), metric_of_all(comparison)),
        styles=style_list,
        order=order,
        deployables=deployables,
        static_curves=Markup(static),
        cost=_html.figure(wide, narrow) if wide and narrow else "",
        version=version,
    )


def about_curves(comparison: Comparison, group: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """Return title, axis, unit and decimals of each curve of a data set and network, by its name."""
    text, places = metric_of(comparison, group[0]), decimals(comparison, group)
    loss = {"unit": "", "places": 3}
    metric = {"unit": text.after, "places": 1 if text.metric.percent else places}
    return {
        name: {"axis": title if name.endswith("loss") else text.caption(title)}
        | (loss if name.endswith("loss") else metric)
        for name, title in curves.titles(comparison, group).items()
    }


def _downloads(content: dict[str, str], text: MetricText) -> list[tuple[str, str, str]]:
    """Return name, label and address of each file; the address contains the file itself."""
    values = "accuracies" if text.is_accuracy else "metrics" if text.several else text.name
    return [
        (
            name,
            label.format(values),
            f"data:{kind};charset=utf-8;base64,{base64.b64encode(content[name].encode()).decode()}",
        )
        for name, label, kind in _DOWNLOADS
        if name in content
    ]
