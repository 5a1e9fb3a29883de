"""Numbers as text, the same in every table: rounded alike, with their spread and the count behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steppe.report.comparison.summary import ResultRow, Spread
from steppe.report.statistics import Difference

MARK = "*"
NONE = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
NOTES = (
    "Accuracies are in percent, mean ± sample standard deviation over n seeds; differences are in percentage "
    "points, paired by seed, after the last epoch, with their 95 % interval.",
    f"{MARK} the interval excludes 0. Intervals are not adjusted for several comparisons.",
)
BEST_OF_ALL = "best of all"
ABOUT_BEST_OF_ALL = (
    "the largest test accuracy of any network, branch or ensemble at any epoch, as several papers report; "
    "nothing is chosen by it here."
)


def left_out(names: Sequence[str]) -> str:
    """Return which images could not be read, three of them by name."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    count = "1 image" if len(names) == 1 else f"{len(names)} images"
    return f"{count} left out that cannot be read: {', '.join(names[:3])}{more}"


def number(value: float | None, decimals: int = 1, sign: bool = False) -> str:
    """Return the number rounded, never as -0; a dash where there is none."""
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
    """Return ``[1.2, 7.4]``, or why there is no interval."""
    if value.low is None or value.high is None:
        return "one seed: no interval" if value.n == 1 else "equal in all seeds: no interval"
    return f"[{number(value.low, decimals)}, {number(value.high, decimals)}]"


def difference(value: Difference | None, decimals: int, n: int | None = None) -> str:
    """Return ``+4.3 [1.2, 7.4]``; the number of pairs is added where it is not ``n``."""
    if value is None:
        return NONE
    text = f"{number(value.mean, decimals, sign=True)} {interval(value, decimals)}"
    return text if n is None or value.n in (n, 1) else f"{text} n={value.n}"


def seeds(row: ResultRow) -> str:
    """Return ``n=3``, with failed and unfinished runs beside it."""
    parts = [f"n={row.ok}"]
    parts += [f"{row.failed} failed"] if row.failed else []
    parts += [f"{row.unfinished} unfinished"] if row.unfinished else []
    return ", ".join(parts)


def passes(row: ResultRow) -> str:
    """Return forward, backward and updates per batch as ``2 / 2 / 1``."""
    if row.forward is None and row.backward is None and row.updates is None:
        return NONE
    return " / ".join(_short(v) for v in (row.forward, row.backward, row.updates))


def ratio(row: ResultRow) -> str:
    """Return training time over plain's as ``1.9×``."""
    if row.time_ratio is None:
        return NONE
    return f"{number(row.time_ratio, 1 if row.time_ratio < 10 else 0)}{TIMES}"


def plain_text(value: object) -> str:
    """Return a name or message in one line, without characters that steer a terminal or break a file."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def minus(shown: str) -> str:
    """Return the text with true minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", shown)


def markdown_cell(value: str) -> str:
    """Return text that stays in its cell of a Markdown table and marks nothing up."""
    for character in "\\|<>`*_[]":
        value = value.replace(character, "\\" + character)
    return value


def inert(name: str) -> str:
    """Return a name that no spreadsheet takes for a formula."""
    name = plain_text(name)
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def _short(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}".rstrip("0").rstrip(".")
