"""The answer of a search: the best setting, and whether its gain over plain training is significant."""

import math
from typing import Any

from rich import box
from rich.table import Table

from steppe.experiments.tuning.search import Candidate, TuningResult
from steppe.experiments.tuning.space import Range
from steppe.report.formatting import count, interval, number
from steppe.report.statistics import Difference, mean_std, paired_difference

_EDGE = 0.05  # share of a range, from its end, within which the best value counts as at the end


def difference(result: TuningResult) -> Difference:
    """Return the best setting minus plain, in points of validation accuracy, paired by fresh seed."""
    tuned, plain = ([100 * a for a in values] for values in (result.tuned_again, result.plain_again))
    return paired_difference(tuned, plain)


def verdict(result: TuningResult) -> list[str]:
    """Return the answer in sentences: the difference to plain, and whether the best value is at a range's end."""
    d, method = difference(result), result.best.method
    seeds = f"{d.n} fresh {'seed' if d.n == 1 else 'seeds'}"
    bounds = f" {interval(d, 2)}" if d.low is not None else ""
    amount = f"{number(d.mean, 2, sign=True)} points{bounds} of validation accuracy on {seeds}"
    if d.significant and d.mean > 0:
        sentences = [f"{method} beats plain: {amount}."]
    elif d.significant:
        sentences = [f"{method}, the best found, is worse than plain: {amount}."]
    else:
        why = "" if d.low is not None else ", and there is no interval" + ("" if d.n > 1 else " from one seed")
        sentences = [f"No significant gain over plain: {method} minus plain is {amount}{why}."]
    # a value inside the range with the same accuracy is as good
    ties = [t for t in result.trials if t.state == "complete" and t.accuracy == result.best.accuracy]
    if others := [t for t in ties if t != result.best]:
        which = count(len(others), "other setting")
        sentences.append(f"In the search {which} had the same validation accuracy; the loss decided.")
    for r in result.ranges:
        if all(_at_an_end(t.values[r.name], r) for t in (result.best, *ties)):
            sentences.append(
                f"The best {r.name}, {result.best.values[r.name]:g}, is at the end of its range "
                f"{r.low:g}..{r.high:g}; a wider range may have a better one: --settings {r.name}=LOW..HIGH."
            )
    return sentences


def _at_an_end(value: float, r: Range) -> bool:
    low, high, at = (math.log(v) if r.log else v for v in (r.low, r.high, value))
    share = (at - low) / (high - low)
    return min(share, 1 - share) < _EDGE


def result_as_dict(result: TuningResult) -> dict[str, Any]:
    """Return a search as plain data; accuracies are fractions of the validation images."""
    d = difference(result)
    return {
        "format": 1,
        "run": result.run.as_dict(),
        "settings": [vars(r) for r in result.ranges],
        "trials": [_row(t) for t in result.trials],
        "baseline": _row(result.baseline),
        "best": _row(result.best),
        "confirmation": {
            "seeds": result.fresh,
            "tuned": result.tuned_again,
            "plain": result.plain_again,
            "points": {"mean": d.mean, "low": d.low, "high": d.high},
            "beats_plain": d.significant and d.mean > 0,
        },
        "verdict": " ".join(verdict(result)),
    }


def table(result: TuningResult) -> Table:
    """Return a table of the trials, best first, then the pruned and failed ones, then plain."""
    rows = Table(box=box.SIMPLE_HEAD)
    names = [r.name for r in result.ranges]
    for title in (*names, "validation accuracy, %", "state"):
        rows.add_column(title, justify="left" if title == "state" else "right")
    order = ("complete", "pruned", "failed")
    for tried in sorted(result.trials, key=lambda t: (order.index(t.state), -t.accuracy)):
        tied = tried.state == "complete" and tried.accuracy == result.best.accuracy
        state = "best" if tried == result.best else "as accurate as the best" if tied else tried.state
        rows.add_row(*(f"{tried.values[name]:g}" for name in names), _percent(tried), state)
    rows.add_row(*("" for _ in names[1:]), "plain", _percent(result.baseline), "baseline")
    return rows


def _row(tried: Candidate) -> dict[str, Any]:
    return vars(tried) | {"accuracy": tried.accuracy}


def _percent(tried: Candidate) -> str:
    mean, std = mean_std([100 * a for a in tried.accuracies] or [0.0])
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")
