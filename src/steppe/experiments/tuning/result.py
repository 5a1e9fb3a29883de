"""What a search says: the best setting, and whether it beats plain training beyond the noise of seeds."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.table import Table

from steppe.experiments.tuning.search import Candidate, TuningResult
from steppe.experiments.tuning.space import Range
from steppe.report.formatting import interval, number
from steppe.report.statistics import Difference, mean_std, paired_difference

_EDGE = 0.05  # a best value this close to an end of its range, as a share of it, may lie outside


def difference(found: TuningResult) -> Difference:
    """Return the best setting minus plain, in points of validation accuracy, paired by fresh seed."""
    tuned, plain = ([100 * a for a in values] for values in (found.tuned_again, found.plain_again))
    return paired_difference(tuned, plain)


def verdict(found: TuningResult) -> list[str]:
    """Return the answer, a sentence each: gain or none, and the end of a range that the best value is at."""
    d, method = difference(found), found.best.method
    seeds = f"{d.n} fresh {'seed' if d.n == 1 else 'seeds'}"
    bounds = f" {interval(d, 2)}" if d.low is not None else ""
    amount = f"{number(d.mean, 2, sign=True)} points{bounds} of validation accuracy on {seeds}"
    if d.significant and d.mean > 0:
        said = [f"{method} beats plain: {amount}."]
    elif d.significant:
        said = [f"{method}, the best found, is worse than plain: {amount}."]
    else:
        why = "" if d.low is not None else ", and there is no interval" + ("" if d.n > 1 else " from one seed")
        said = [f"No gain over plain can be told from the noise of seeds: {method} minus plain is {amount}{why}."]
    # of equal accuracies one in the middle is as good
    as_good = [t for t in found.trials if t.state == "complete" and t.accuracy == found.best.accuracy]
    for r in found.ranges:
        if all(_at_an_end(t.values[r.name], r) for t in (found.best, *as_good)):
            said.append(
                f"The best {r.name}, {found.best.values[r.name]:g}, is at the end of its range "
                f"{r.low:g}..{r.high:g}; more may lie beyond: --settings {r.name}=LOW..HIGH."
            )
    return said


def _at_an_end(value: float, of: Range) -> bool:
    low, high, at = (math.log(v) if of.log else v for v in (of.low, of.high, value))
    share = (at - low) / (high - low)
    return min(share, 1 - share) < _EDGE


def result_as_dict(found: TuningResult) -> dict[str, Any]:
    """Return a search as plain data; accuracies are fractions of the validation images."""
    d = difference(found)
    return {
        "format": 1,
        "run": found.run.as_dict(),
        "settings": [vars(r) for r in found.ranges],
        "trials": [_row(t) for t in found.trials],
        "baseline": _row(found.baseline),
        "best": _row(found.best),
        "confirmation": {
            "seeds": found.fresh,
            "tuned": found.tuned_again,
            "plain": found.plain_again,
            "points": {"mean": d.mean, "low": d.low, "high": d.high},
            "beats_plain": d.significant and d.mean > 0,
        },
        "verdict": " ".join(verdict(found)),
    }


def table(found: TuningResult) -> Table:
    """Return the trials, best first, below them those that were pruned, and plain."""
    shown = Table(box=box.SIMPLE_HEAD)
    names = [r.name for r in found.ranges]
    for title in (*names, "validation accuracy, %", "state"):
        shown.add_column(title, justify="left" if title == "state" else "right")
    order = ("complete", "pruned", "failed")
    for tried in sorted(found.trials, key=lambda t: (order.index(t.state), -t.accuracy)):
        state = "best" if tried == found.best else tried.state
        shown.add_row(*(f"{tried.values[name]:g}" for name in names), _percent(tried), state)
    shown.add_row(*("" for _ in names[1:]), "plain", _percent(found.baseline), "baseline")
    return shown


def _row(tried: Candidate) -> dict[str, Any]:
    return vars(tried) | {"accuracy": tried.accuracy}


def _percent(tried: Candidate) -> str:
    mean, std = mean_std([100 * a for a in tried.accuracies] or [0.0])
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")
