"""The honest reading of a comparison in words: computed, and never beyond what the intervals say."""

from __future__ import annotations

from itertools import groupby

from steppe.report import formatting
from steppe.report.comparison.summary import ResultRow
from steppe.report.statistics import Difference, holm

CONTROLS = {
    "repeat-step": "plain, its own gradient applied twice",
    "two-step": "plain, two fresh gradients and two steps on the same batch",
}


def sentence(rows: list[ResultRow]) -> str:
    """Return what the comparison shows: the highest mean against plain, then against its controls.

    "Above" and "below" without a qualifier are said only where the 95 % interval of the paired difference
    excludes 0. What several comparisons at once do to that is stated with Holm's adjustment over every
    difference of the table. With several data sets or networks, each has its own sentences.
    """
    found = _grouped(rows)
    if not found:
        return "There is no run."
    return " ".join(
        " ".join(([f"{name}:"] if len(found) > 1 else []) + sentences(group) + [adjusted(group)]).strip()
        for name, group in found
    )


def remarks(rows: list[ResultRow]) -> list[str]:
    """Return what else the intervals say: which methods differ from plain, which from all their controls.

    Also how many runs are missing from the means. One or more lines per data set and network; none where
    there is nothing to add.
    """
    found = _grouped(rows)
    return [
        (f"{name}: " if len(found) > 1 else "") + remark
        for name, group in found
        for remark in (_versus_plain(group), _above_controls(group), _missing(group))
        if remark
    ]


def sentences(rows: list[ResultRow]) -> list[str]:
    """Return what ``sentence`` says of one data set and network, without the adjustment."""
    done = [row for row in rows if row.last is not None]
    if not done:
        return ["No run has finished, so there is nothing to say yet."]
    best = max(done, key=_mean)
    return [s for s in (_highest(best, len(done)), _versus_controls(done, best)) if s]


def _highest(best: ResultRow, count: int) -> str:
    assert best.last is not None
    over = f"Over {best.last.n} seeds" if best.last.n > 1 else "With one seed"
    shown = formatting.spread(best.last, best.decimals)
    if count == 1:
        return f"{over} {_name(best)} reaches a test accuracy of {shown} %; nothing stands beside it yet."
    start = f"{over} {_name(best)} has the highest mean test accuracy, {shown} %"
    if best.is_baseline or best.difference is None:
        return f"{start}."
    by = _amount(best.difference, best.decimals)
    if best.difference.separates:
        return f"{start}: {by} above plain."
    return f"{start}, {by} from plain: {_why_not(best.difference)}."


def _versus_controls(done: list[ResultRow], best: ResultRow) -> str:
    having = [row for row in done if row.controls]
    if not having:
        return ""
    row = best if best.controls else max(having, key=_mean)
    word = "controls" if len(row.controls) > 1 else "control"
    clear = {c: d for c, d in row.controls.items() if d.separates}
    unclear = {c: d for c, d in row.controls.items() if not d.separates}
    parts = [
        f"{_amount(d, row.decimals)} {'above' if d.mean > 0 else 'below'} {_control(c)}" for c, d in clear.items()
    ]
    if unclear:
        reasons = {_why_not(d) for d in unclear.values()}
        listed = _list([f"{_amount(d, row.decimals)} from {_control(c)}" for c, d in unclear.items()])
        parts.append(f"{listed}: {'; '.join(sorted(reasons))}")
    return f"Against its {word}, {_name(row)} is {'; '.join(parts)}."


def on_front(methods: list[str], count: int, cost: str) -> str:
    """Return which of ``count`` methods are on the Pareto front of accuracy and cost."""
    names = _list([formatting.plain_text(m) for m in methods])
    if count == 1:
        return f"{names} stands alone."
    others = count - len(methods)
    said = [f"On the Pareto front of mean test accuracy and {cost}: {names}."]
    if others:
        rest = "the other" if others == 1 else f"each of the other {others}"
        said.append(f"For {rest} there is one that costs no more and is at least as accurate.")
    return " ".join([*said, "The front is drawn through means; neighbours on it need not separate."])


def adjusted(rows: list[ResultRow]) -> str:
    """Return what is left of one table's differences after Holm's adjustment; nothing without intervals."""
    p = [d.p for row in rows for d in (row.difference, *row.controls.values()) if d and d.p is not None]
    if not p:
        return ""
    if len(p) == 1:
        return "The interval is at 95 %."
    left = sum(value <= 0.05 for value in holm(p))
    still = f"{left} still {'differs' if left == 1 else 'differ'} from 0" if left else "none can be told from 0"
    return (
        f"Intervals are at 95 %, each on its own and not adjusted for several comparisons; with Holm's "
        f"adjustment over the table's {len(p)} differences, {still}."
    )


def _versus_plain(rows: list[ResultRow]) -> str:
    others = [row for row in rows if row.difference is not None and row.difference.low is not None]
    if len(others) < 2:
        return ""
    above = [_name(r) for r in others if r.difference and r.difference.separates and r.difference.mean > 0]
    below = [_name(r) for r in others if r.difference and r.difference.separates and r.difference.mean < 0]
    said = [f"{_list(names)} {word} plain" for names, word in ((above, "above"), (below, "below")) if names]
    if not said:
        return f"None of the {len(others)} methods has an interval against plain that excludes 0."
    return f"Of {len(others)} methods, intervals that exclude 0 put {' and '.join(said)}."


def _above_controls(rows: list[ResultRow]) -> str:
    having = [row for row in rows if any(d.low is not None for d in row.controls.values())]
    if len(having) < 2:
        return ""
    clear = [_name(r) for r in having if all(d.separates and d.mean > 0 for d in r.controls.values())]
    who = f"{_list(clear)} {'are' if len(clear) > 1 else 'is'}" if clear else "none is"
    return f"Of {len(having)} methods with controls, {who} above every control by an interval that excludes 0."


def _missing(rows: list[ResultRow]) -> str:
    failed, unfinished = sum(r.failed for r in rows), sum(r.unfinished for r in rows)
    parts = [f"{failed} {'run' if failed == 1 else 'runs'} failed"] if failed else []
    if unfinished:
        parts.append(f"{unfinished} {'run is' if unfinished == 1 else 'runs are'} not finished")
    return f"{' and '.join(parts)}; such runs are in no mean." if parts else ""


def _amount(difference: Difference, decimals: int) -> str:
    shown = formatting.number(difference.mean, decimals, sign=True)
    bounds = f" {formatting.interval(difference, decimals)}" if difference.low is not None else ""
    return f"{shown} points{bounds}"


def _why_not(difference: Difference) -> str:
    if difference.low is not None:
        return "this comparison does not separate them"
    if difference.n == 1:
        return "one seed gives no interval, so chance cannot be told from effect"
    return "the difference is equal in all seeds, which gives no interval"


def _name(row: ResultRow) -> str:
    return formatting.plain_text(row.method)


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mean(row: ResultRow) -> float:
    return row.last.mean if row.last else float("-inf")


def _control(name: str) -> str:
    shown = formatting.plain_text(name)
    return f"{shown} ({CONTROLS[name]})" if name in CONTROLS else shown


def _grouped(rows: list[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    return [
        (formatting.plain_text(f"{dataset}, {model}"), list(group))
        for (dataset, model), group in groupby(rows, key=lambda r: (r.dataset, r.model))
    ]
