"""The test accuracy of single classes, and of classes with many, a medium number of and few training samples."""

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison.summary import Spread, groups, runs_of, spread

TITLE = "Accuracy of classes"
_GROUPS = ("many", "medium", "few")
_MOST = 10  # classes in a table; the file has all


@dataclass(frozen=True)
class ClassTable:
    """Test accuracies of classes or groups of classes on one data set and network, after the last epoch.

    Attributes:
        dataset, model: What the table belongs to.
        note: What its numbers are.
        heads: The classes or groups.
        rows: Per method an accuracy in percent, over seeds, for each head.
        columns: Positions of the heads that are printed: all, or the classes of the lowest mean over methods.
    """

    dataset: str
    model: str
    note: str
    heads: list[str]
    rows: dict[str, list[Spread | None]]
    columns: list[int]

    def lines(self) -> list[tuple[str, list[str]]]:
        """Return each method and its printed cells."""
        return [
            (method, [formatting.spread(row[i], 1) for i in self.columns]) for method, row in self.rows.items()
        ]


def tables(comparison: Comparison) -> list[ClassTable]:
    """Return the tables of each data set and network whose records have accuracies of classes."""
    return [table for group in groups(comparison) for table in _tables(comparison, group)]


def _tables(comparison: Comparison, group: tuple[str, str]) -> list[ClassTable]:
    tests: dict[str, list[dict[str, Any]]] = {}
    for method in comparison.methods:
        runs = [r for r in runs_of(comparison, group, method) if r.status == "ok"]
        tests |= {method: [(r.result or {})["test"].get("last") or {} for r in runs]} if runs else {}
    about = comparison.data.get(group[0], {})
    every = [test for own in tests.values() for test in own]
    of_groups = [g for g in _GROUPS if any(g in (test.get("groups") or {}) for test in every)]
    count = max((len(test.get("per_class") or ()) for test in every), default=0)
    named = [formatting.plain_text(name) for name in about.get("names") or ()]
    classes = named if len(named) == count else [f"class {i}" for i in range(count)]
    results = []
    if of_groups:
        rows = {
            m: [_percent((t.get("groups") or {}).get(g) for t in own) for g in of_groups]
            for m, own in tests.items()
        }
        results.append(
            ClassTable(*group, _about_groups(about.get("per_class")), of_groups, rows, [*range(len(of_groups))])
        )
    if classes:
        rows = {
            m: [_percent((t.get("per_class") or [None] * count)[i] for t in own) for i in range(count)]
            for m, own in tests.items()
        }

        def mean(i: int) -> float:
            return sum(v.mean if (v := row[i]) else 100.0 for row in rows.values())

        lowest = sorted(range(count), key=mean)[:_MOST]
        which = f", the {_MOST} of {count} classes with the lowest mean over methods" if count > _MOST else ""
        note = f"Test accuracy in percent of each class after the last epoch{which}."
        results.append(ClassTable(*group, note, classes, rows, sorted(lowest)))
    return results


def _percent(shares: Any) -> Spread | None:
    return spread(None if share is None else 100 * share for share in shares)


def _about_groups(counts: Any) -> str:
    text = (
        "Test accuracy in percent after the last epoch over classes with many, a medium number of and few training"
    )
    text += " samples"
    if not isinstance(counts, list) or not counts:
        return f"{text}."
    if max(counts) > 100 and min(counts) < 20:
        return f"{text}: many are more than 100, few fewer than 20."
    return f"{text}: thirds of the classes by their number."


def terminal(every: list[ClassTable]) -> list[RenderableType]:
    """Return the tables for a terminal."""
    results: list[RenderableType] = []
    for own in every:
        title = f"{TITLE}: {formatting.plain_text(', '.join((own.dataset, own.model)))}"
        table = Table("method", title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        table.pad_edge = False
        for i in own.columns:
            table.add_column(Text(own.heads[i]), justify="right")
        for method, cells in own.lines():
            table.add_row(*map(Text, (formatting.plain_text(method), *cells)))
        results += [table, Text(own.note, style="dim")]
    return results


def csv(every: list[ClassTable]) -> str:
    """Return a line per method and class or group of classes, with unrounded numbers in percent."""
    lines: list[list[object]] = [["dataset", "model", "method", "classes", "n", "test_last_mean", "test_last_std"]]
    for table in every:
        for method, row in table.rows.items():
            for head, value in zip(table.heads, row, strict=True):
                names = map(formatting.inert, (table.dataset, table.model, method, head))
                lines.append([*names, *((value.n, value.mean, value.std) if value else (0, None, None))])
    return formatting.csv_text(lines)
