"""The tables of a suite for the terminal, Markdown and a spreadsheet."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from steppe.records.suite import SuiteRecords
from steppe.report import formatting
from steppe.report.formatting import markdown_cell, number, plain_text
from steppe.report.suite.league import VIEWS, WITHIN, Standing, cell

_WITHIN = [f"within {x:.0%}" for x in WITHIN]
_HEADS = ["method", "mean rank", "best on", "better", "worse", *_WITHIN, "passes", "time"]


def cells(standing: Standing) -> list[str]:
    """Return the texts of a row of the league table, under the heads of `heads`."""
    tasks = len(standing.cells)
    return [
        plain_text(standing.row),
        number(standing.rank, 1),
        formatting.NONE if standing.first is None else str(standing.first),
        f"{standing.won} of {tasks}",
        f"{standing.lost} of {tasks}",
        *(formatting.NONE if (s := standing.share_within(x)) is None else f"{s:.0%}" for x in WITHIN),
        formatting.passes(standing.cost),
        formatting.ratio(standing.cost),
    ]


def terminal(leagues: Mapping[str, Sequence[Standing]]) -> list[Table]:
    """Return one table per view."""
    tables = []
    for view, standings in leagues.items():
        if not standings:
            continue
        table = Table(*_HEADS, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = Text(VIEWS[view], style="bold")
        for standing in standings:
            table.add_row(*map(Text, cells(standing)), style="dim" if standing.control else "")
        tables.append(table)
    return tables


def markdown(suite: SuiteRecords, leagues: Mapping[str, Sequence[Standing]]) -> str:
    """Return the league tables, the results by task and the chosen settings as Markdown."""
    lines = [f"# {markdown_cell(plain_text(suite.title))}", ""]
    for view, standings in leagues.items():
        tasks = [task for task in suite.tasks if any(task in s.cells for s in standings)]
        lines += [f"## {VIEWS[view]}", "", *_table(_HEADS, [_named(s, cells(s)) for s in standings])]
        heads = ["method", *(f"{task}, {_unit(task, standings)}" for task in tasks)]
        rows = [
            _named(s, [s.row, *(cell(s.cells[t]) if t in s.cells else formatting.NONE for t in tasks)])
            for s in standings
        ]
        lines += _table(heads, rows)
    lines += ["## Chosen settings", ""]
    tasks = list(suite.tuning)
    names = dict.fromkeys(row for own in suite.tuning.values() for row in own)
    lines += _table(["method", *tasks], [[name, *(chosen(suite, task, name) for task in tasks)] for name in names])
    return "\n".join([*lines, *notes(suite), ""])


def csv(leagues: Mapping[str, Sequence[Standing]]) -> str:
    """Return a line per view, row and task with unrounded numbers, in percent where the metric is a share."""
    heads = ["view", "method", "control", "task", "metric", "better", "n", "mean", "std"]
    heads += [
        "minus_plain",
        "low",
        "high",
        "excess",
        "mean_rank",
        "forward",
        "backward",
        "updates",
        "seconds",
        "time_ratio",
    ]
    lines: list[list[object]] = [[*heads]]
    for view, standings in leagues.items():
        for s in standings:
            for task, r in s.cells.items():
                better = "higher" if r.text.metric.higher else "lower"
                own: list[object] = [view, formatting.inert(s.row), int(s.control), formatting.inert(task)]
                own += [r.text.name, better, r.last.n if r.last else 0]
                d, last = r.difference, r.last
                own += [last.mean, last.std] if last else [None, None]
                own += [d.mean, d.low, d.high] if d else [None] * 3
                own += [s.excess.get(task), s.rank, r.forward, r.backward, r.updates, r.seconds, r.time_ratio]
                lines.append(own)
    return formatting.csv_text(lines)


def chosen(suite: SuiteRecords, task: str, row: str) -> str:
    """Return the text of a row's chosen setting on a task."""
    tuning = suite.tuning.get(task, {}).get(row)
    if tuning is None:
        return formatting.NONE
    return "none finished" if tuning["chosen"] is None else str(tuning["settings"][tuning["chosen"]])


def notes(suite: SuiteRecords) -> list[str]:
    """Return notes on what the numbers are, and on the tasks that are left out."""
    seeds = {record.seed for comparison in suite.views.values() for record in comparison.records}
    tuned, compared = (formatting.count(len(n), "seed") for n in (suite.seeds["tune"], seeds))
    return [
        f"Mean ± sample standard deviation over up to {compared}; then the difference to plain, "
        f"paired by seed, with Student's 95 % interval. {formatting.MARK}: the interval excludes 0.",
        f"{formatting.SPLITS[suite.resplit]}.",
        f"Each row's setting is chosen on the validation data over {tuned} that the comparison does not use. "
        "Controls are ranked with no method; methods are ranked among those that have every task.",
        *(f"Task {plain_text(task)} is left out: {why}." for task, why in suite.missing.items()),
    ]


def _named(standing: Standing, texts: list[str]) -> list[str]:
    return [f"{texts[0]} (control)" if standing.control else texts[0], *texts[1:]]


def _unit(task: str, standings: Sequence[Standing]) -> str:
    text = next(s.cells[task].text for s in standings if task in s.cells)
    return text.caption(text.name)


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([markdown_cell(c) for c in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
