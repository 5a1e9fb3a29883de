"""The test result of everything a method can deploy: networks, branches, averages and ensembles."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison.summary import Spread, decimals, groups, metric_of, runs_of, spread, value_of
from steppe.report.metric_text import ACCURACY_TEXT, MetricText, caption, csv_cells, csv_heads, text_of

TITLE = "What each method can deploy"
DEPLOYED = "deployed"
DIVERSITY = "diversity"
IDENTICAL = 1e-3  # a diversity below it is that of one network


@dataclass(frozen=True)
class Part:
    """One thing that a method's runs could deploy, or the distance between them.

    Attributes:
        dataset, model, method: What it belongs to.
        name: 'deployed', 'network 1', 'ensemble', ..., or 'diversity'.
        last, best: Test value of the metric (for the diversity: the distance) after the last epoch, and after the
            best validation epoch; accuracy in percent.
        decimals: Decimals worth printing.
        text: How the metric is written.
    """

    dataset: str
    model: str
    method: str
    name: str
    last: Spread | None
    best: Spread | None
    decimals: int
    text: MetricText = ACCURACY_TEXT


def parts(comparison: Comparison) -> list[Part]:
    """Return what can be deployed, for the methods that record more than one output, in the order of the rows."""
    return [
        part
        for group in groups(comparison)
        for method in comparison.methods
        for part in _parts(comparison, group, method)
    ]


def note(rows: list[Part]) -> str:
    """Return what the table's numbers are, and which methods' networks became one."""
    several = any(s.std is not None for row in rows for s in (row.last, row.best) if s)
    deviation = ", mean ± sample standard deviation over seeds," if several else ""
    distances = [row for row in rows if row.name == DIVERSITY and row.last]
    same = list(dict.fromkeys(row.method for row in distances if row.last and row.last.mean < IDENTICAL))
    warning = (
        f" The networks or branches of {formatting.listed(same)} predict the same after the last epoch: this is "
        "plain training at a multiple of the cost."
        if same
        else ""
    )
    text = text_of(row.text.metric for row in rows)
    unit = " in percent" if text.unit == "%" else f" in {text.unit}" if text.unit else ""
    better = f" ({text.direction})" if text.direction else ""
    outputs = "probabilities" if text.is_accuracy else "outputs"
    return (
        f"Test {text.name}{unit}{better}{deviation} of each network, branch, average and ensemble by itself. "
        f"{DEPLOYED.capitalize()} is the model that the other tables report. "
        f"{DIVERSITY.capitalize()} is the mean L2 distance between the {outputs} of two networks or branches."
        f"{warning}"
    )


def _parts(comparison: Comparison, group: tuple[str, str], method: str) -> list[Part]:
    tests = [(r.result or {})["test"] for r in runs_of(comparison, group, method) if r.status == "ok"]
    last, best = ([test.get(which) or {} for test in tests] for which in ("last", "best"))
    names = list(dict.fromkeys(name for test in last for name in test.get("outputs") or {}))
    if not names:
        return []

    text = metric_of(comparison, group[0])

    def value(tests: list[dict[str, Any]], name: str) -> Spread | None:
        cells = (test if name == DEPLOYED else (test.get("outputs") or {}).get(name) for test in tests)
        return spread(value_of(cell, text) for cell in cells if cell)

    places = decimals(comparison, group)
    rows = [Part(*group, method, n, value(last, n), value(best, n), places, text) for n in (DEPLOYED, *names)]
    distance, at_best = (spread(test.get(DIVERSITY) for test in tests) for tests in (last, best))
    return [*rows, Part(*group, method, DIVERSITY, distance, at_best, 3, text)] if distance else rows


def terminal(rows: list[Part]) -> list[RenderableType]:
    """Return a table for a terminal for each data set and network, and a note; nothing without outputs."""
    tables: list[RenderableType] = []
    for title, group in formatting.by_group(rows):
        title = caption(title, group[0].text)
        table = Table(title=Text(f"{TITLE}: {title}", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        table.pad_edge = False
        for head in ("method", "what"):
            table.add_column(head)
        for head in ("last epoch", "best val."):
            table.add_column(Text(group[0].text.with_unit(head)), justify="right")
        for method, own in groupby(group, key=lambda row: row.method):
            for i, row in enumerate(own):
                style = "bold" if row.name == DEPLOYED else "dim" if row.name == DIVERSITY else ""
                name = formatting.plain_text(method) if i == 0 else ""
                table.add_row(Text(name), *(Text(c, style=style) for c in _cells(row)))
        tables.append(table)
    return [*tables, Text(note(rows), style="dim")] if tables else []


def markdown(rows: list[Part]) -> str:
    """Return a Markdown table for each data set and network; nothing without outputs."""
    cell = formatting.markdown_cell
    lines: list[str] = []
    for title, group in formatting.by_group(rows):
        text = group[0].text
        heads = " | ".join(cell(text.with_unit(head)) for head in ("last epoch", "best val."))
        lines += [f"### {TITLE}: {cell(caption(title, text))}", "", f"| method | what | {heads} |"]
        lines += ["| --- | --- | ---: | ---: |"]
        lines += [*(f"| {' | '.join(map(cell, (row.method, *_cells(row))))} |" for row in group), ""]
    return "\n".join([*lines, note(rows), ""]) if lines else ""


def csv(rows: list[Part]) -> str:
    """Return one line per output with unrounded numbers: the metric (shares in percent), and the distance.

    Unless every metric is accuracy, further columns have its name, unit and direction.
    """
    texts = [row.text for row in rows]
    heads = [f"{which}_{part}" for which in ("test_last", "test_best_val") for part in ("mean", "std")]
    lines: list[list[object]] = [["dataset", "model", *csv_heads(texts), "method", "what", "n", *heads]]
    for row in rows:
        about = csv_cells(row.text, texts)
        names = [formatting.inert(name) for name in (row.dataset, row.model, *about, row.method, row.name)]
        values = [v for s in (row.last, row.best) for v in ((s.mean, s.std) if s else (None, None))]
        lines.append([*names, row.last.n if row.last else 0, *values])
    return formatting.csv_text(lines)


def _cells(row: Part) -> list[str]:
    return [formatting.plain_text(row.name), *(formatting.spread(s, row.decimals) for s in (row.last, row.best))]
