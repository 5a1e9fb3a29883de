"""The result of a comparison in sentences, computed from the differences and their 95 % intervals.

"Significant" means that the interval excludes 0.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison.summary import BASELINE, ResultRow
from steppe.report.formatting import count, hardly_trained, listed, plain_text
from steppe.report.metric_text import ACCURACY_TEXT, MetricText
from steppe.report.statistics import Difference, holm

_Item = TypeVar("_Item")

_ROUNDING = 1e-12  # equal values near 0 may differ by it

CONTROLS = {
    "repeat-step": "plain, its own gradient applied twice",
    "two-step": "plain, two fresh gradients and two steps on the same batch",
}


def sentence(rows: list[ResultRow]) -> str:
    """Return the result: the best method and its differences to plain and to its controls.

    The differences of the table are also adjusted together (Holm). Each data set and network has its own
    sentences.
    """
    groups = formatting.by_group(rows)
    texts = [
        " ".join([*([f"{name}:"] if len(groups) > 1 else []), *sentences(group), adjusted(group)]).strip()
        for name, group in groups
    ]
    return " ".join([*texts, *filter(None, [ranking(rows)])]) or "There is no run."


def remarks(rows: list[ResultRow]) -> list[str]:
    """Return whether networks are trained at all, which methods differ significantly, and how many runs miss.

    One line each per data set and network; none where there is nothing to report.
    """
    groups = formatting.by_group(rows)
    return [
        (f"{name}: " if len(groups) > 1 else "") + remark
        for name, group in groups
        for remark in (
            _hardly_trained(group),
            _compared_with_plain(group),
            _compared_with_controls(group),
            _missing(group),
        )
        if remark
    ]


def sentences(rows: list[ResultRow]) -> list[str]:
    """Return the result of one data set and network, without the adjustment."""
    finished = [row for row in rows if row.last is not None]
    if not finished:
        return ["No run has finished yet."]
    best = tied(finished, _gain)
    having = [row for row in best if row.controls] or tied([row for row in finished if row.controls], _gain)
    return [_best(best, len(finished)), *map(_with_controls, having)]


def tied(items: Sequence[_Item], value: Callable[[_Item], float]) -> list[_Item]:
    """Return the items of the highest value: several if they are equal but for rounding."""
    highest = max(map(value, items), default=0.0)
    return [item for item in items if math.isclose(value(item), highest, rel_tol=1e-9, abs_tol=_ROUNDING)]


def _best(best: list[ResultRow], methods: int) -> str:
    spreads = [row.last for row in best if row.last is not None]
    least, most = (limit(s.n for s in spreads) for limit in (min, max))
    counts = str(most) if least == most else f"{least} to {most}"
    seeds = f"Over {counts} seeds" if most > 1 else "With one seed"
    text, places = best[0].text, best[0].decimals
    value = f"{formatting.spread(spreads[0], places)}{text.after}"
    names = listed([plain_text(row.method) for row in best])
    if methods == 1:
        return f"{seeds}, {names} reaches a test {text.name} of {value}."
    highest = f"the {text.highest} mean test {text.name}{f' ({text.direction})' if text.direction else ''}"
    if len(best) == 1:
        result = f"{seeds}, {names} has {highest}, {value}"
    else:
        value = f"{formatting.number(spreads[0].mean, places)}{text.after}"
        result = f"{seeds}, {names} share {highest}, {value}"
    amounts = [
        (f"{plain_text(row.method)} " if len(best) > 1 else "")
        + f"{_amount(row.difference, row)} compared with plain ({_verdict(row.difference)})"
        for row in best
        if row.difference
    ]
    return f"{result}: {listed(amounts)}." if amounts else f"{result}."


def _with_controls(row: ResultRow) -> str:
    parts = []
    for name, difference in row.controls.items():
        about = f"{CONTROLS[name]}; " if name in CONTROLS else ""
        amount = _amount(difference, row)
        parts.append(f"{amount} compared with {plain_text(name)} ({about}{_verdict(difference)})")
    controls = "controls" if len(row.controls) > 1 else "control"
    return f"The difference of {plain_text(row.method)} to its {controls} is {listed(parts)}."


def ranking(rows: list[ResultRow]) -> str:
    """Return the mean ranks of the methods over data sets of different metrics; "" where all have one metric.

    Rank 1 is the best mean after the last epoch; equal means share the mean of their ranks. A method without a
    finished run in one of the tables has no rank.
    """
    tables = [{row.method: _gain(row) for row in group if row.last} for _, group in formatting.by_group(rows)]
    methods = [m for m in (tables[0] if tables else ()) if all(m in table for table in tables)]
    if len({row.text for row in rows}) < 2 or len(methods) < 2:
        return ""

    def rank(method: str, table: dict[str, float]) -> float:
        others = [table[m] for m in methods if m != method]
        return 1 + sum(v > table[method] for v in others) + sum(v == table[method] for v in others) / 2

    ranks = {m: sum(rank(m, table) for table in tables) / len(tables) for m in methods}
    texts = [f"{plain_text(m)} {value:.1f}" for m, value in sorted(ranks.items(), key=lambda item: item[1])]
    return (
        "The data sets have different metrics, so their values have no common mean. Mean rank of each method over "
        f"the {len(tables)} tables, 1 is best: {', '.join(texts)}. Ranks do not show how large differences are."
    )


def missing_controls(comparison: Comparison) -> str:
    """Return which methods have controls that the comparison has not, and how to add these; "" if none has."""
    missing = {
        method: [c for c in dict.fromkeys(map(str, about.get("controls") or [])) if c not in comparison.methods]
        for method, about in comparison.methods.items()
    }
    texts = [f"{plain_text(m)} ({listed([*map(plain_text, names)])})" for m, names in missing.items() if names]
    names = " ".join(dict.fromkeys(plain_text(name) for names in missing.values() for name in names))
    if not texts:
        return ""
    return f"Without a control of equal cost: {listed(texts)}. Add to --methods: {names}."


def on_front(methods: list[str], total: int, cost: str, text: MetricText = ACCURACY_TEXT) -> str:
    """Return which of the ``total`` methods are on the Pareto front of the metric and cost."""
    result = f"Pareto front of mean test {text.name} and {cost}: {listed([plain_text(m) for m in methods])}."
    if others := total - len(methods):
        which = "The other method is" if others == 1 else f"The other {others} methods are"
        good = "accurate" if text.is_accuracy else "good"
        result += f" {which} dominated: for each, another costs no more and is at least as {good}."
    if len(methods) > 1:
        result += " Neighbours on the front need not differ significantly."
    return result


def adjusted(rows: list[ResultRow]) -> str:
    """Return how many of one table's differences are significant after Holm's adjustment; "" without intervals."""
    differences = [(r, c, d) for r in rows for c, d in ((BASELINE, r.difference), *r.controls.items()) if d]
    tested = [(row, control, d.p) for row, control, d in differences if d.p is not None]
    if not tested:
        return ""
    if len(tested) == 1:
        ((row, control, _),) = tested
        return f"The interval of {plain_text(row.method)} minus {plain_text(control)} is at 95 %."
    left = sum(value <= 0.05 for value in holm([p for _, _, p in tested]))
    which = "differences" if len(tested) == len(differences) else "differences that have an interval"
    return (
        "Intervals are at 95 %, each on its own. With Holm's adjustment over the table's "
        f"{len(tested)} {which}, {left or 'none'} {'are' if left > 1 else 'is'} significant."
    )


def compared(differences: dict[str, Difference], text: MetricText = ACCURACY_TEXT) -> str:
    """Return which methods are significantly above and below plain, or better and worse; "" if none is."""
    parts = []
    places = ("above", "below") if text.is_accuracy else ("better than", "worse than")
    for place, sign in zip(places, (1, -1), strict=True):
        names = [plain_text(m) for m, d in differences.items() if d.significant and text.gain(d.mean) * sign > 0]
        are = "is" if len(names) == 1 else "are"
        parts += [f"{listed(names)} {are} significantly {place} plain"] if names else []
    return " and ".join(parts)


def _compared_with_plain(rows: list[ResultRow]) -> str:
    differences = {r.method: r.difference for r in rows if r.difference and r.difference.low is not None}
    if len(differences) < 2:
        return ""
    if result := compared(differences, rows[0].text):
        return f"Of {len(differences)} methods, {result}."
    return f"None of the {len(differences)} methods differs significantly from plain."


def _compared_with_controls(rows: list[ResultRow]) -> str:
    having = [row for row in rows if any(d.low is not None for d in row.controls.values())]
    if len(having) < 2:
        return ""
    names = [
        plain_text(r.method)
        for r in having
        if all(d.significant and r.text.gain(d.mean) > 0 for d in (r.difference, *r.controls.values()) if d)
    ]
    place = "above" if rows[0].text.is_accuracy else "better than"
    above = f"{listed(names)} {'are' if len(names) > 1 else 'is'}" if names else "none is"
    controls = "plain and all of its controls" if any(r.difference for r in having) else "all of its controls"
    return f"Of {len(having)} methods with controls other than plain, {above} significantly {place} {controls}."


def _hardly_trained(rows: list[ResultRow]) -> str:
    """Return that no method is better than a constant, where the record has the constant's value."""
    constant, values = rows[0].constant, [row.last.mean for row in rows if row.last]
    text, places = rows[0].text, rows[0].decimals
    if constant is None or not values or text.gain(text.best(values)) > text.gain(constant):
        return ""
    return hardly_trained(text, constant, places)


def _missing(rows: list[ResultRow]) -> str:
    failed, unfinished = sum(r.failed for r in rows), sum(r.unfinished for r in rows)
    empty = sum(r.without_value for r in rows)
    name = rows[0].text.name
    parts = [f"{count(failed, 'run')} failed"] if failed else []
    parts += [f"{count(unfinished, 'run')} {'is' if unfinished == 1 else 'are'} unfinished"] if unfinished else []
    parts += [f"{count(empty, 'run')} ended with a test {name} that is not finite"] if empty else []
    if not parts:
        return ""
    return f"{listed(parts)}; {'it is' if failed + unfinished + empty == 1 else 'they are'} left out of the means."


def _amount(difference: Difference, row: ResultRow) -> str:
    bounds = f" {formatting.interval(difference, row.decimals)}" if difference.low is not None else ""
    points = row.text.points and f" {row.text.points}"
    return f"{formatting.mean(difference, row.decimals)}{points}{bounds}"


def _verdict(difference: Difference) -> str:
    if difference.low is not None:
        return "significant" if difference.significant else "not significant"
    return "one seed gives no interval" if difference.n == 1 else "equal in all seeds, which gives no interval"


def _gain(row: ResultRow) -> float:
    return row.text.gain(row.last.mean) if row.last else float("-inf")
