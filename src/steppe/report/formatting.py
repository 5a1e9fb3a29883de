"""Numbers as text, rounded alike in every table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from steppe.report.comparison.summary import ResultRow, Spread
    from steppe.report.metric_text import MetricText
    from steppe.report.statistics import Difference

_Row = TypeVar("_Row")

MARK = "*"
NONE = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_PARTS = {"train": "training", "val": "validation", "test": "test"}
_CLASSES = {"multi-label": "labels", "ordinal": "ordered classes"}
BEST_OF_ALL = "best of all"
SPLITS = {  # by whether each seed has a split of its own
    False: "All seeds have the same samples and the same split, and intervals do not cover that choice",
    True: "Each seed has a split of its own: intervals cover the choice of training and validation samples from "
    "the data set, and not that of test samples that are fixed",
}


def about_best_of_all(text: MetricText, samples: str) -> str:
    """Return a sentence on the column of the best value at any epoch; ``samples`` are images, rows, ..."""
    return (
        f"The {text.largest} test {text.name} of any network, branch or ensemble at any epoch, as several papers "
        f"report. It needs the test {samples}, so nothing here is chosen by it."
    )


def by_group(rows: Iterable[_Row]) -> list[tuple[str, list[_Row]]]:
    """Return the rows of each data set and network under its name, ``digits, resnet8``."""
    grouped = groupby(rows, key=lambda row: (row.dataset, row.model))  # type: ignore[attr-defined]
    return [(plain_text(", ".join(group)), list(members)) for group, members in grouped]


def has_spread(rows: Iterable[ResultRow]) -> bool:
    """Return whether a row is over several seeds, and so has a standard deviation."""
    return any(s.std is not None for row in rows for s in (row.last, row.best, row.best_of_all) if s)


def has_interval(rows: Iterable[Any]) -> bool:
    """Return whether a difference of a row has an interval."""
    return any(d.low is not None for row in rows for d in (row.difference, *row.controls.values()) if d)


def units(rows: Sequence[ResultRow], mark: str) -> list[str]:
    """Return notes on what a table's numbers are; ``mark`` is how it sets significant differences off."""
    deviation = ", mean ± sample standard deviation over n seeds" if has_spread(rows) else ""
    interval = ", with their 95 % interval" if has_interval(rows) else ""
    notes = [
        f"{_unit_of_values(text)}{deviation}; differences are {text.differences}, paired by seed, after the last "
        f"epoch{interval}."
        for text in dict.fromkeys(row.text for row in rows)
    ]
    return notes + ([f"{mark} Intervals are not adjusted for several comparisons."] if interval else [])


def _unit_of_values(text: MetricText) -> str:
    if text.is_accuracy:
        return "Accuracies are in percent"
    unit = "in percent, " if text.metric.percent else f"in {text.unit}, " if text.unit else ""
    return f"{text.title} is {unit}{text.direction}" if unit else f"{text.title}: {text.direction}"


def samples_name(about: Mapping[str, Any]) -> str:
    """Return what a data set's samples are, from what the record has: images, rows, sequences or samples."""
    if "task" not in about or "channels" in about:
        return "images"
    return "rows" if "features" in about else "sequences" if "vocabulary" in about else "samples"


def images_summary(name: str, about: Mapping[str, Any]) -> str:
    """Return a sentence on the samples of a data set, from what the record has: parts, classes, left out."""
    parts = [f"{about[part]:,} {title}" for part, title in _PARTS.items() if isinstance(about.get(part), int)]
    samples = samples_name(about)
    images = f"{listed(parts)} {samples}" if parts else f"{samples} of unknown number"
    images += f" of {about['length']} tokens" if about.get("length") else ""
    names = [str(name) for name in about.get("names") or ()]
    listing = f" ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})" if names else ""
    kind = _CLASSES.get(str(about.get("task")), "classes")
    classes = f" of {about['classes']} {kind}{listing}" if about.get("classes") else ""
    if about.get("task") == "language modelling":
        classes = f", vocabulary of {about.get('vocabulary') or about.get('classes') or 'unknown size'}"
    skipped = about.get("skipped") or []
    notes = [str(about["note"])] if about.get("note") else []
    notes += [left_out(skipped)] if isinstance(skipped, list) and skipped else []
    return plain_text("; ".join([f"{name}: {images}{classes}", *notes])) + "."


def left_out(names: Sequence[str]) -> str:
    """Return how many images could not be read, and the names of the first three."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{count(len(names), 'image')} left out that cannot be read: {', '.join(names[:3])}{more}"


def count(n: int, noun: str, several: str = "") -> str:
    """Return ``1 run`` or ``2 runs``."""
    return f"{n} {noun if n == 1 else several or f'{noun}s'}"


def listed(names: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number(value: float | None, decimals: int = 1, sign: bool = False) -> str:
    """Return the number rounded, never as -0; a dash for None."""
    if value is None:
        return NONE
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{decimals}f}"


def spread(value: Spread | None, decimals: int) -> str:
    """Return ``96.1 ± 0.3``, or only the mean for one seed."""
    if value is None:
        return NONE
    if value.std is None:
        return number(value.mean, decimals)
    return f"{number(value.mean, decimals)} ± {number(value.std, decimals)}"


def interval(value: Difference, decimals: int) -> str:
    """Return ``[1.2, 7.4]``, or why there is none; if it excludes 0, no bound is printed as 0."""
    if value.low is None or value.high is None:
        return "one seed: no interval" if value.n == 1 else "equal in all seeds: no interval"
    if _is_tiny(value):
        return f"[{value.low:.1e}, {value.high:.1e}]"
    bounds = []
    for bound in (value.low, value.high):
        places = decimals
        while value.low * value.high > 0 and not round(bound, places):
            places += 1
        bounds.append(number(bound, places))
    return f"[{', '.join(bounds)}]"


def _is_tiny(value: Difference) -> bool:
    """Return whether an interval excludes 0 by less than decimals can show."""
    return (
        value.low is not None
        and value.high is not None
        and value.low * value.high > 0
        and (min(abs(value.low), abs(value.high)) < 1e-4)
    )


def mean(value: Difference, decimals: int) -> str:
    """Return the mean of a difference with its sign; if its interval excludes 0, it is not printed as 0."""
    if _is_tiny(value):
        return f"{value.mean:+.1e}"
    while value.significant and not round(value.mean, decimals):
        decimals += 1
    return number(value.mean, decimals, sign=True)


def difference(value: Difference | None, decimals: int, n: int | None = None) -> str:
    """Return ``+4.3 [1.2, 7.4]``; the number of pairs is added where it is not ``n``."""
    if value is None:
        return NONE
    text = f"{mean(value, decimals)} {interval(value, decimals)}"
    return text if n is None or value.n in (n, 1) else f"{text} n={value.n}"


def hardly_trained(text: MetricText, constant: float, decimals: int, part: str = "test") -> str:
    """Return that no run is better than predicting the mean of the training targets, and what to do."""
    return (
        "The networks are hardly trained: predicting the mean of the training targets has a "
        f"{part} {text.name} of {number(constant, decimals)}{text.after}, and no method is better. Raise the "
        "learning rate or the number of epochs, or scale inputs and targets."
    )


def seeds(row: ResultRow) -> str:
    """Return ``n=3``, the number of values, and the numbers of runs without one if there are any."""
    parts = [f"n={row.ok - row.without_value}"]
    parts += [f"{row.without_value} without a value"] if row.without_value else []
    parts += [f"{row.failed} failed"] if row.failed else []
    parts += [f"{row.unfinished} unfinished"] if row.unfinished else []
    return ", ".join(parts)


def passes(row: ResultRow) -> str:
    """Return forward passes, backward passes and updates per batch as ``2 / 2 / 1``."""
    values = (row.forward, row.backward, row.updates)
    if not any(v is not None for v in values):
        return NONE
    return " / ".join(NONE if v is None else f"{v:.2f}".rstrip("0").rstrip(".") for v in values)


def ratio(row: ResultRow) -> str:
    """Return training time over plain's as ``1.9×``."""
    if row.time_ratio is None:
        return NONE
    return f"{number(row.time_ratio, 1 if row.time_ratio < 10 else 0)}{TIMES}"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plain_text(value: object) -> str:
    """Return a name or message in one line, without characters that steer a terminal or break a file."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def minus(text: str) -> str:
    """Return the text with true minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)


def markdown_cell(value: str) -> str:
    """Return text with everything escaped that Markdown would read as markup or as the cell's end."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", value)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Return lines of cells as the text of a CSV file; a cell of None is empty."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def inert(name: str) -> str:
    """Return a name that no spreadsheet evaluates as a formula."""
    name = plain_text(name)
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name
