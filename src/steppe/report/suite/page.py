"""The page of a suite: one HTML file that needs no network, with its tables as Markdown and CSV."""

import base64
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from steppe.records import write_text
from steppe.records.suite import SuiteRecords, load_suite
from steppe.report import _html
from steppe.report.comparison.curves import AXES
from steppe.report.comparison.summary import metric_of
from steppe.report.style import styles
from steppe.report.suite import tables
from steppe.report.suite._figures import profile
from steppe.report.suite.league import VIEWS, WITHIN, Standing, chance, lede, standings

_KINDS = {"league.csv": ("CSV", "text/csv"), "league.md": ("Markdown", "text/markdown")}


def write(folder: Path) -> Path:
    """Write ``report.html``, ``league.md`` and ``league.csv`` into a suite's folder; return the page's path.

    Unfinished suites can be reported too.

    Raises:
        steppe.errors.InputError: The folder is not that of a suite, or is damaged.
        steppe.errors.RunError: A file cannot be written.
    """
    suite = load_suite(folder)
    leagues = leagues_of(suite)
    for name, content in _files(suite, leagues).items():
        write_text(folder / name, content)
    path = folder / "report.html"
    write_text(path, html(suite, leagues))
    return path


def leagues_of(suite: SuiteRecords) -> dict[str, list[Standing]]:
    """Return the league table of each view."""
    return {view: standings(suite, view) for view in suite.views}


def html(suite: SuiteRecords, leagues: dict[str, list[Standing]]) -> str:
    """Return the page as text."""
    comparison = suite.views["compute"]

    def numbers(task: str, values: Sequence[float | None]) -> str:
        finished = [v for v in values if v is not None]
        mean = fmean(finished) if finished and len(finished) == len(values) else None
        return "failed" if mean is None else metric_of(comparison, task).value(mean)

    order = {method: i for i, method in enumerate(comparison.methods)}
    style_list = list(styles(comparison).values())
    wide, narrow = profile(suite, leagues), profile(suite, leagues, narrow=True)
    data: dict[str, Any] = {"axes": AXES, "axis": "epochs"}
    data |= {part: [] for part in ("metrics", "styles", "budgets", "groups")}
    return _html.render(
        "suite.html.j2",
        comparison,
        "page.js",
        data,
        title=suite.title,
        command=comparison.command,
        suite=suite,
        views=[_view(view, own, suite) for view, own in leagues.items()],
        within=WITHIN,
        chosen=tables.chosen,
        numbers=numbers,
        tuned={row: about["settings"] for own in suite.tuning.values() for row, about in own.items()},
        notes=tables.notes(suite),
        styles=style_list,
        order=order,
        profile=_html.figure(wide, narrow) if wide and narrow else "",
        downloads=[(name, *_KINDS[name], _encoded(text)) for name, text in _files(suite, leagues).items()],
    )


def _view(view: str, own: Sequence[Standing], suite: SuiteRecords) -> dict[str, Any]:
    tasks = [task for task in suite.tasks if any(task in s.cells for s in own)]
    texts = {task: next(s.cells[task].text for s in own if task in s.cells) for task in tasks}
    content = {"name": view, "title": VIEWS[view], "standings": own, "tasks": tasks, "texts": texts}
    return content | {"lede": lede(own), "chance": chance(own)}


def _files(suite: SuiteRecords, leagues: dict[str, list[Standing]]) -> dict[str, str]:
    return {"league.csv": tables.csv(leagues), "league.md": tables.markdown(suite, leagues)}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
