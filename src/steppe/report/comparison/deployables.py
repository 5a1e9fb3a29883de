"""What each method can deploy: every network, branch, average and ensemble that its runs were tested with."""

from __future__ import annotations

import csv as _csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison.summary import Spread, chosen, groups, spread

TITLE = "What each method can deploy"
DEPLOYED = "deployed"
DIVERSITY = "diversity"
NOTE = (
    "Test accuracy in percent, mean ± sample standard deviation over seeds, of each network, branch, average and "
    f"ensemble by itself; {DEPLOYED} is what the method names as its result, and what the other tables show. "
    f"{DIVERSITY.capitalize()} is the mean L2 distance between the probabilities of two networks or branches."
)


@dataclass(frozen=True)
class Part:
    """One thing that a method's runs could deploy, or the distance between them.

    Attributes:
        dataset, model, method: Whose it is.
        name: 'deployed', 'network 1', 'ensemble', ..., or 'diversity'.
        last, best: After the last epoch and after the epoch of highest validation accuracy: test accuracy in
            percent, and of the diversity the distance.
        decimals: Decimals worth printing.
    """

    dataset: str
    model: str
    method: str
    name: str
    last: Spread | None
    best: Spread | None
    decimals: int


def parts(comparison: Comparison) -> list[Part]:
    """Return what can be deployed, for the methods that record more than one output, in the order of the rows."""
    return [
        part
        for group in groups(comparison)
        for method in comparison.methods
        for part in _parts(comparison, group, method)
    ]


def _parts(comparison: Comparison, group: tuple[str, str], method: str) -> list[Part]:
    records = [r for r in chosen(comparison, group, method) if r.status == "ok" and r.result is not None]
    tests = [(r.result or {})["test"] for r in records]
    ends = {which: [t.get(which) or {} for t in tests] for which in ("last", "best")}
    names = list(dict.fromkeys(name for end in ends["last"] for name in end.get("outputs") or {}))
    if not names:
        return []
    decimals = 2 if (comparison.data.get(group[0], {}).get("test") or 0) >= 2000 else 1

    def part(name: str, decimals: int, values: dict[str, Iterable[Any]]) -> Part:
        return Part(*group, method, name, spread(values["last"]), spread(values["best"]), decimals)

    def accuracies(name: str) -> dict[str, Iterable[Any]]:
        found = {w: [e if name == DEPLOYED else (e.get("outputs") or {}).get(name) for e in ends[w]] for w in ends}
        return {w: [100 * v["accuracy"] for v in values if v] for w, values in found.items()}

    distances: dict[str, Iterable[Any]] = {w: [e.get(DIVERSITY) for e in ends[w]] for w in ends}
    found = [part(name, decimals, accuracies(name)) for name in (DEPLOYED, *names)]
    return [*found, part(DIVERSITY, 3, distances)] if any(d is not None for d in distances["last"]) else found


def terminal(found: list[Part]) -> list[RenderableType]:
    """Return a table for a terminal for each data set and network, and what they show; nothing without any."""
    tables: list[RenderableType] = []
    for title, group in _grouped(found):
        table = Table(title=Text(f"{TITLE}: {title}", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        table.pad_edge = False
        for head in ("method", "what"):
            table.add_column(head)
        for head in ("last epoch, %", "best val., %"):
            table.add_column(head, justify="right")
        for method, own in groupby(group, key=lambda p: p.method):
            for i, p in enumerate(own):
                style = "bold" if p.name == DEPLOYED else "dim" if p.name == DIVERSITY else ""
                name = formatting.plain_text(method) if i == 0 else ""
                table.add_row(Text(name), *(Text(c, style=style) for c in _cells(p)))
        tables.append(table)
    return [*tables, Text(NOTE, style="dim")] if tables else []


def markdown(found: list[Part]) -> str:
    """Return a Markdown table for each data set and network; nothing where there is nothing to show."""
    out: list[str] = []
    for title, group in _grouped(found):
        out += [
            f"### {TITLE}: {formatting.markdown_cell(title)}",
            "",
            "| method | what | last epoch, % | best val., % |",
        ]
        out += ["| --- | --- | ---: | ---: |"]
        out += [f"| {' | '.join(map(formatting.markdown_cell, (p.method, *_cells(p))))} |" for p in group]
        out += [""]
    return "\n".join([*out, NOTE, ""]) if out else ""


def csv(found: list[Part]) -> str:
    """Return one line per output with unrounded numbers: percent, and the distance as it is."""
    file = io.StringIO()
    writer = _csv.writer(file, lineterminator="\n")
    ends = [f"{which}_{part}" for which in ("test_last", "test_best_val") for part in ("mean", "std")]
    writer.writerow(["dataset", "model", "method", "what", "n", *ends])
    for p in found:
        values = [v for s in (p.last, p.best) for v in ((s.mean, s.std) if s else (None, None))]
        names = [formatting.inert(name) for name in (p.dataset, p.model, p.method, p.name)]
        writer.writerow([*names, p.last.n if p.last else 0, *values])
    return file.getvalue()


def _cells(part: Part) -> list[str]:
    return [
        formatting.plain_text(part.name),
        *(formatting.spread(s, part.decimals) for s in (part.last, part.best)),
    ]


def _grouped(found: list[Part]) -> list[tuple[str, list[Part]]]:
    by = groupby(found, key=lambda p: (p.dataset, p.model))
    return [(formatting.plain_text(", ".join(group)), list(own)) for group, own in by]
