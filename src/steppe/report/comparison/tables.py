"""The table of a comparison for the terminal, Markdown, a spreadsheet and LaTeX."""

from __future__ import annotations

import csv as _csv
import io
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from steppe.report import formatting
from steppe.report.comparison.conclusions import sentence
from steppe.report.comparison.summary import ResultRow, rows
from steppe.report.statistics import Difference

__all__ = ["ResultRow", "csv", "latex", "markdown", "rows", "sentence", "terminal"]


class _Column(NamedTuple):
    title: str
    cell: Callable[[ResultRow], str]
    left_out_first: int = 0


_COLUMNS = (
    _Column("method", lambda r: formatting.plain_text(r.method)),
    _Column("seeds", formatting.seeds),
    _Column("last epoch, %", lambda r: formatting.spread(r.last, r.decimals)),
    _Column("best val., %", lambda r: formatting.spread(r.best, r.decimals), 4),
    _Column(f"{formatting.BEST_OF_ALL}, %", lambda r: formatting.spread(r.best_of_all, r.decimals), 3),
    _Column("minus plain", lambda r: _marked(r.difference, r)),
    _Column("passes", formatting.passes, 3),
    _Column("seconds", lambda r: formatting.number(r.seconds, 1), 1),
    _Column("time", formatting.ratio),
    _Column("peak MB", lambda r: formatting.number(r.memory, 0), 2),
)


def terminal(rows: list[ResultRow]) -> RenderableType:
    """Return the tables for a terminal; they fit its width by leaving out seconds, memory, passes, best epoch.

    Differences whose interval contains 0 are dim; those whose interval excludes it bear a star, so that
    piped text says the same.
    """
    return _Terminal(rows)


def markdown(rows: list[ResultRow]) -> str:
    """Return one Markdown table per data set and network; differences away from 0 are bold."""

    cell = formatting.markdown_cell

    def strong(difference: Difference | None, row: ResultRow) -> str:
        shown = formatting.difference(difference, row.decimals, row.ok)
        return f"**{shown}**" if difference and difference.separates else shown

    out: list[str] = []
    for title, group in _grouped(rows):
        columns = _columns(rows)
        at = [c.title for c in columns].index("minus plain")
        shown = columns[:at] + columns[at + 1 :]
        heads = [c.title for c in shown]
        heads[at:at] = ["minus plain", "minus control"]
        out += [f"### {cell(title)}", "", _line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
        for row in group:
            cells = [cell(c.cell(row)) for c in shown]
            against = [f"{cell(formatting.plain_text(n))} {strong(d, row)}" for n, d in row.controls.items()]
            cells[at:at] = [strong(row.difference, row), "<br>".join(against) or formatting.NONE]
            out.append(_line(cells))
        out.append("")
    notes = [formatting.NOTES[0], "Bold: the interval excludes 0." + _UNADJUSTED, *_about_best_of_all(rows)]
    return "\n".join([*out, *notes, ""])


def csv(rows: list[ResultRow]) -> str:
    """Return one line per row with unrounded numbers: percent, percentage points, seconds, MB."""
    controls = list(dict.fromkeys(name for row in rows for name in row.controls))
    file = io.StringIO()
    writer = _csv.writer(file, lineterminator="\n")
    heads = ["dataset", "model", "method", "n", "failed", "unfinished"]
    accuracies = ["last", "best_val", *(["best_of_all"] if _watched(rows) else [])]
    heads += [f"test_{which}_{part}" for which in accuracies for part in ("mean", "std")]
    heads += ["forward", "backward", "updates", "seconds", "time_ratio", "peak_memory_mb"]
    for name in ["plain", *controls]:
        heads += [f"minus_{formatting.inert(name)}{part}" for part in ("", "_low", "_high", "_n", "_p")]
    writer.writerow(heads)
    for row in rows:
        cells: list[object] = [formatting.inert(c) for c in (row.dataset, row.model, row.method)]
        cells += [row.ok, row.failed, row.unfinished]
        for value in (row.last, row.best, row.best_of_all)[: len(accuracies)]:
            cells += [value.mean, value.std] if value else [None, None]
        cells += [row.forward, row.backward, row.updates, row.seconds, row.time_ratio, row.memory]
        for d in [row.difference, *(row.controls.get(name) for name in controls)]:
            cells += [d.mean, d.low, d.high, d.n, d.p] if d else [None] * 5
        writer.writerow(cells)
    return file.getvalue()


def latex(rows: list[ResultRow]) -> str:
    """Return one booktabs table per data set and network; differences whose interval contains 0 are grey.

    Needs ``\\usepackage{booktabs,xcolor}``.
    """
    out = [r"% needs \usepackage{booktabs,xcolor}"]

    def muted(difference: Difference | None, row: ResultRow) -> str:
        shown = _tex(formatting.difference(difference, row.decimals, row.ok)).replace("-", "$-$")
        shown = "--" if difference is None else shown
        return shown if difference is None or difference.separates else rf"\textcolor{{gray}}{{{shown}}}"

    for title, group in _grouped(rows):
        names = list(dict.fromkeys(name for row in group for name in row.controls))
        columns = _columns(rows)
        columns = columns[: [c.title for c in columns].index("minus plain")]
        heads = [_tex(c.title[0].upper() + c.title[1:]) for c in columns] + ["Minus plain"]
        heads += [f"Minus {_tex(formatting.plain_text(name))}" for name in names] + ["Passes", "Time"]
        out += [
            f"% {formatting.plain_text(title)}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
        ]
        out += [" & ".join(heads) + r" \\", r"\midrule"]
        for row in group:
            cells = [_tex(c.cell(row)) for c in columns] + [muted(row.difference, row)]
            cells += [muted(row.controls.get(name), row) for name in names]
            cells += [_tex(formatting.passes(row)), _tex(formatting.ratio(row))]
            out.append(" & ".join(cells) + r" \\")
        out += [r"\bottomrule", r"\end{tabular}", ""]
    notes = f"{formatting.NOTES[0]} Grey: the interval contains 0, or there is none.{_UNADJUSTED}"
    return "\n".join([*out, *(f"% {note}" for note in (notes, *_about_best_of_all(rows))), ""])


_PASSES = "Best val.: at the best validation epoch. Passes: forward / backward / updates per batch."
_UNADJUSTED = " Intervals are not adjusted for several comparisons."


def _watched(rows: list[ResultRow]) -> bool:
    return any(row.best_of_all is not None for row in rows)


def _columns(rows: list[ResultRow]) -> list[_Column]:
    best_of_all = f"{formatting.BEST_OF_ALL}, %"
    return [c for c in _COLUMNS if c.title != best_of_all or _watched(rows)]


def _about_best_of_all(rows: list[ResultRow]) -> list[str]:
    return [f"{formatting.BEST_OF_ALL.capitalize()}: {formatting.ABOUT_BEST_OF_ALL}"] if _watched(rows) else []


class _Terminal:
    def __init__(self, rows: list[ResultRow]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = options.ascii_only

        def plain(value: str) -> str:
            for fancy, simple in (("±", "+/-"), (formatting.TIMES, "x"), (formatting.NONE, "-")):
                value = value.replace(fancy, simple) if ascii_only else value
            return value.encode("ascii", "replace").decode() if ascii_only else value

        left_out: list[str] = []
        every = _columns(self.rows)
        for title, group in _grouped(self.rows):
            for least in range(5):
                columns = [c for c in every if not 0 < c.left_out_first <= least]
                table = _table(title, group, columns, plain)
                if Measurement.get(console, options.update(width=1000), table).maximum <= options.max_width:
                    break
            gone = [c.title for c in every if c not in columns]
            left_out = gone if len(gone) > len(left_out) else left_out
            yield table
            if any(row.controls for row in group):
                yield _controls(group, plain)
        notes = [*formatting.NOTES, _PASSES, *_about_best_of_all(self.rows)]
        if left_out:
            notes.append(f"Left out at this width: {', '.join(left_out)}.")
        yield Text(plain("\n".join(notes)), style="dim")


def _table(title: str, group: list[ResultRow], columns: list[_Column], plain: Callable[[str], str]) -> Table:
    table = Table(
        title=Text(plain(title), style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        table.add_column(
            Text(column.title),
            justify="left" if column.title in ("method", "seeds", "minus plain") else "right",
            no_wrap=column.title != "method",
            overflow="fold",
        )
    for row in group:
        cells = [Text(plain(c.cell(row)), style=_style(c, row)) for c in columns]
        table.add_row(*cells)
    return table


def _controls(group: list[ResultRow], plain: Callable[[str], str]) -> Table:
    table = Table("method", "minus its control", "", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in group:
        for i, (name, d) in enumerate(row.controls.items()):
            table.add_row(
                Text(plain(formatting.plain_text(row.method) if i == 0 else "")),
                Text(plain(formatting.plain_text(name))),
                Text(plain(_marked(d, row)), style="" if d.separates else "dim"),
            )
    return table


def _style(column: _Column, row: ResultRow) -> str:
    if column.title == "minus plain" and row.difference is not None and not row.difference.separates:
        return "dim"
    if column.title == "seeds" and row.failed:
        return "red"
    return "bold" if column.title == "method" and row.is_baseline else ""


def _marked(difference: Difference | None, row: ResultRow) -> str:
    shown = formatting.difference(difference, row.decimals, row.ok)
    return f"{shown} {formatting.MARK}" if difference and difference.separates else shown


def _grouped(rows: list[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    return [
        (formatting.plain_text(f"{dataset}, {model}"), list(group))
        for (dataset, model), group in groupby(rows, key=lambda r: (r.dataset, r.model))
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex(value: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"} | {
        "±": r"$\pm$",
        formatting.TIMES: r"$\times$",
        formatting.NONE: "--",
    }
    special |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(special.get(c, c) for c in value)
