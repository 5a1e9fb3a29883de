"""The table of a comparison for the terminal, Markdown, a spreadsheet and LaTeX."""

from collections.abc import Callable
from typing import NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from steppe.report import formatting
from steppe.report.comparison.summary import BASELINE, ResultRow
from steppe.report.formatting import by_group, plain_text
from steppe.report.metric_text import MetricText, caption, csv_cells, csv_heads, text_of
from steppe.report.statistics import Difference

_PASSES = "Best val.: at the best validation epoch. Passes: forward / backward / updates per batch."


class _Column(NamedTuple):
    """A column of the terminal's table; those with the smallest ``priority`` above 0 are left out first."""

    title: str
    cell: Callable[[ResultRow], str]
    priority: int = 0
    unit: bool = False

    def head(self, text: MetricText) -> str:
        """Return the title, of a value of the metric with its unit."""
        return text.with_unit(self.title) if self.unit else self.title


_COLUMNS = (
    _Column("method", lambda r: plain_text(r.method)),
    _Column("seeds", formatting.seeds),
    _Column("last epoch", lambda r: formatting.spread(r.last, r.decimals), unit=True),
    _Column("best val.", lambda r: formatting.spread(r.best, r.decimals), 4, unit=True),
    _Column(formatting.BEST_OF_ALL, lambda r: formatting.spread(r.best_of_all, r.decimals), 3, unit=True),
    _Column("minus plain", lambda r: _marked(r.difference, r)),
    _Column("passes", formatting.passes, 3),
    _Column("seconds", lambda r: formatting.number(r.seconds, 1), 1),
    _Column("time", formatting.ratio),
    _Column("peak MB", lambda r: formatting.number(r.memory, 0), 2),
)


def terminal(rows: list[ResultRow]) -> RenderableType:
    """Return the tables for a terminal; they fit its width by leaving out seconds, memory, passes, best epoch.

    Significant differences have a star, so that piped text says what colour would; all others are dim.
    """
    return _Terminal(rows)


def markdown(rows: list[ResultRow]) -> str:
    """Return one Markdown table per data set and network; significant differences are bold."""
    cell = formatting.markdown_cell

    def difference(value: Difference | None, row: ResultRow) -> str:
        text = formatting.difference(value, row.decimals, row.ok)
        return f"**{text}**" if value and value.significant else text

    def controls(row: ResultRow) -> str:
        texts = [f"{cell(plain_text(name))} {difference(d, row)}" for name, d in row.controls.items()]
        return "<br>".join(texts) or formatting.NONE

    lines: list[str] = []
    for title, group in _titled(rows):
        columns: dict[str, Callable[[ResultRow], str]] = {}
        for c in _columns(rows):
            if c.title == "minus plain":
                columns |= {c.title: lambda row: difference(row.difference, row), "minus control": controls}
            else:
                columns[c.head(group[0].text)] = lambda row, c=c: cell(c.cell(row))  # type: ignore[misc]
        lines += [f"### {cell(title)}", "", _line(list(columns)), _line(["---"] + ["---:"] * (len(columns) - 1))]
        lines += [_line([content(row) for content in columns.values()]) for row in group]
        lines.append("")
    notes = [*formatting.units(rows, "Bold: the interval excludes 0."), *_best_of_all(rows)]
    return "\n".join([*lines, *notes, ""])


def csv(rows: list[ResultRow]) -> str:
    """Return one line per row with unrounded numbers: the metric (percent if it is a share), seconds, MB.

    Unless all rows are accuracies, further columns have the metric's name, unit and direction.
    """
    controls, texts = _controls(rows), [row.text for row in rows]
    heads = ["dataset", "model", *csv_heads(texts), "method", "n", "failed", "unfinished"]
    values = ["last", "best_val", *(["best_of_all"] if _best_of_all(rows) else [])]
    heads += [f"test_{which}_{part}" for which in values for part in ("mean", "std")]
    heads += ["forward", "backward", "updates", "seconds", "time_ratio", "peak_memory_mb"]
    for name in ["plain", *controls]:
        heads += [f"minus_{formatting.inert(name)}{part}" for part in ("", "_low", "_high", "_n", "_p")]
    lines: list[list[object]] = [[*heads]]
    for row in rows:
        about = csv_cells(row.text, texts)
        cells: list[object] = [formatting.inert(c) for c in (row.dataset, row.model, *about, row.method)]
        cells += [row.ok, row.failed, row.unfinished]
        for value in (row.last, row.best, row.best_of_all)[: len(values)]:
            cells += [value.mean, value.std] if value else [None, None]
        cells += [row.forward, row.backward, row.updates, row.seconds, row.time_ratio, row.memory]
        for d in [row.difference, *(row.controls.get(name) for name in controls)]:
            cells += [d.mean, d.low, d.high, d.n, d.p] if d else [None] * 5
        lines.append(cells)
    return formatting.csv_text(lines)


def latex(rows: list[ResultRow]) -> str:
    """Return one booktabs table per data set and network; differences that are not significant are grey.

    Needs ``\\usepackage{booktabs,xcolor}``.
    """
    lines = [r"% needs \usepackage{booktabs,xcolor}"]

    def difference(value: Difference | None, row: ResultRow) -> str:
        if value is None:
            return "--"
        text = _tex(formatting.difference(value, row.decimals, row.ok)).replace("-", "$-$")
        return text if value.significant else rf"\textcolor{{gray}}{{{text}}}"

    columns = _columns(rows)
    columns = columns[: [c.title for c in columns].index("minus plain")]
    for title, group in _titled(rows):
        controls = _controls(group)
        heads = [_tex(_capital(c.head(group[0].text))) for c in columns] + ["Minus plain"]
        heads += [f"Minus {_tex(plain_text(name))}" for name in controls] + ["Passes", "Time"]
        lines += [f"% {plain_text(title)}", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
        lines += [" & ".join(heads) + r" \\", r"\midrule"]
        for row in group:
            cells = [_tex(c.cell(row)) for c in columns] + [difference(row.difference, row)]
            cells += [difference(row.controls.get(name), row) for name in controls]
            cells += [_tex(formatting.passes(row)), _tex(formatting.ratio(row))]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    grey = "Grey: the interval contains 0, or there is none."
    notes = [*formatting.units(rows, grey), *([] if formatting.has_interval(rows) else [grey])]
    return "\n".join([*lines, *(f"% {text}" for text in (*notes, *_best_of_all(rows))), ""])


class _Terminal:
    def __init__(self, rows: list[ResultRow]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def text(value: str) -> str:
            if options.ascii_only:
                for fancy, simple in (("±", "+/-"), (formatting.TIMES, "x"), (formatting.NONE, "-")):
                    value = value.replace(fancy, simple)
                return value.encode("ascii", "replace").decode()
            return value

        left_out: list[str] = []
        every = _columns(self.rows)
        for title, group in _titled(self.rows):
            for least in range(5):
                columns = [c for c in every if not 0 < c.priority <= least]
                table = _results(title, group, columns, text)
                if Measurement.get(console, options.update(width=1000), table).maximum <= options.max_width:
                    break
            left_out = max(left_out, [c.head(group[0].text) for c in every if c not in columns], key=len)
            yield table
            if any(row.controls for row in group):
                yield _against_controls(group, text)
        notes = [*formatting.units(self.rows, f"{formatting.MARK} the interval excludes 0."), _PASSES]
        notes += _best_of_all(self.rows)
        notes += [f"Left out at this width: {', '.join(left_out)}."] if left_out else []
        yield Text(text("\n".join(notes)), style="dim")


def _results(title: str, rows: list[ResultRow], columns: list[_Column], text: Callable[[str], str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    table.title = Text(text(title), style="bold")
    for column in columns:
        left = column.title in ("method", "seeds", "minus plain")
        options = {"no_wrap": column.title != "method", "overflow": "fold"}
        table.add_column(Text(text(column.head(rows[0].text))), justify="left" if left else "right", **options)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(text(c.cell(row)), style=_style(c, row)) for c in columns))
    return table


def _against_controls(rows: list[ResultRow], text: Callable[[str], str]) -> Table:
    table = Table("method", "minus its control", "", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in rows:
        for i, (name, d) in enumerate(row.controls.items()):
            names = [text(plain_text(row.method if i == 0 else "")), text(plain_text(name))]
            table.add_row(*map(Text, names), Text(text(_marked(d, row)), style="" if d.significant else "dim"))
    return table


def _style(column: _Column, row: ResultRow) -> str:
    if column.title == "minus plain" and row.difference and not row.difference.significant:
        return "dim"
    if column.title == "seeds" and row.failed:
        return "red"
    return "bold" if column.title == "method" and row.method == BASELINE else ""


def _marked(difference: Difference | None, row: ResultRow) -> str:
    text = formatting.difference(difference, row.decimals, row.ok)
    return f"{text} {formatting.MARK}" if difference and difference.significant else text


def _columns(rows: list[ResultRow]) -> list[_Column]:
    return [c for c in _COLUMNS if c.title != formatting.BEST_OF_ALL or _best_of_all(rows)]


def _titled(rows: list[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    """Return the rows of each table under its title, which names a metric other than accuracy."""
    return [(caption(title, group[0].text), group) for title, group in by_group(rows)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _best_of_all(rows: list[ResultRow]) -> list[str]:
    """Return the note on 'best of all', where some row has it."""
    having = [row for row in rows if row.best_of_all is not None]
    if not having:
        return []
    text = text_of(row.text.metric for row in having)
    samples = {row.samples for row in having}
    about = formatting.about_best_of_all(text, samples.pop() if len(samples) == 1 else "samples")
    return [f"{formatting.BEST_OF_ALL.capitalize()}: {about}"]


def _controls(rows: list[ResultRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.controls))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex(value: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}"}
    special |= {"±": r"$\pm$", formatting.TIMES: r"$\times$", formatting.NONE: "--"}
    return "".join(special.get(c, c) for c in value)
