"""The answer of a search: the best setting, and whether its gain over plain training is significant."""

import math
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from steppe.experiments.tuning.search import Candidate, TuningResult
from steppe.experiments.tuning.space import Range
from steppe.report.formatting import NONE, count, hardly_trained, interval, mean
from steppe.report.metric_text import MetricText, decimals
from steppe.report.statistics import Difference, mean_std, paired_difference

_EDGE = 0.05  # share of a range, from its end, within which the best value counts as at the end


def difference(result: TuningResult) -> Difference:
    """Return the best setting minus plain, in the metric's unit (accuracy: points), paired by fresh seed."""
    scale = MetricText(result.metric).scale
    tuned, plain = ([scale * a for a in values] for values in (result.tuned_again, result.plain_again))
    return paired_difference(tuned, plain)


def verdict(result: TuningResult) -> list[str]:
    """Return the answer in sentences: the difference to plain, and whether the best value is at a range's end."""
    d, method, text = difference(result), result.best.method, MetricText(result.metric)
    seeds, places = f"{d.n} fresh {'seed' if d.n == 1 else 'seeds'}", _decimals(result)
    bounds = f" {interval(d, places)}" if d.low is not None else ""
    points, better = text.points and f" {text.points}", f" ({text.direction})" if text.direction else ""
    amount = f"{mean(d, places)}{points}{bounds} of validation {text.name}{better} on {seeds}"
    if d.significant and text.gain(d.mean) > 0:
        sentences = [f"{method} beats plain: {amount}."]
    elif d.significant:
        sentences = [f"{method}, the best found, is worse than plain: {amount}."]
    else:
        why = "" if d.low is not None else ", and there is no interval" + ("" if d.n > 1 else " from one seed")
        sentences = [f"No significant gain over plain: {method} minus plain is {amount}{why}."]
    finite = [t.accuracy for t in (result.best, result.baseline) if math.isfinite(t.accuracy)]
    if result.constant is not None and finite and text.gain(text.best(finite)) <= text.gain(result.constant):
        sentences.append(hardly_trained(text, result.constant, places, "validation"))
    # a value inside the range with the same result is as good
    ties = [t for t in result.trials if t.state == "complete" and t.accuracy == result.best.accuracy]
    if others := [t for t in ties if t != result.best]:
        which = count(len(others), "other setting")
        sentences.append(f"In the search {which} had the same validation {text.name}; the loss decided.")
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
    """Return a search as plain data; accuracies are fractions of the validation images.

    With another metric they are called ``values_of_metric``, their mean ``mean``, and ``metric`` has its name,
    unit and direction.
    """
    d, text = difference(result), MetricText(result.metric)
    about = {} if text.is_accuracy else {"metric": result.metric.to_dict()}
    return {
        "format": 1,
        **about,
        "run": result.run.as_dict(),
        "settings": [vars(r) for r in result.ranges],
        "trials": [_row(t, text) for t in result.trials],
        "baseline": _row(result.baseline, text),
        "best": _row(result.best, text),
        "confirmation": {
            "seeds": result.fresh,
            "tuned": result.tuned_again,
            "plain": result.plain_again,
            "points" if result.metric.percent else "difference": {"mean": d.mean, "low": d.low, "high": d.high},
            "beats_plain": d.significant and text.gain(d.mean) > 0,
        },
        "verdict": " ".join(verdict(result)),
    }


def table(result: TuningResult) -> Table:
    """Return a table of the trials, best first, then the pruned and failed ones, then plain."""
    rows, text = Table(box=box.SIMPLE_HEAD), MetricText(result.metric)
    names = [r.name for r in result.ranges]
    for title in (*names, text.caption(f"validation {text.name}"), "state"):
        rows.add_column(Text(title), justify="left" if title == "state" else "right")
    order = ("complete", "pruned", "failed")
    for tried in sorted(result.trials, key=lambda t: (order.index(t.state), -text.gain(t.accuracy))):
        tied = tried.state == "complete" and tried.accuracy == result.best.accuracy
        equal = "as accurate as the best" if text.is_accuracy else "as good as the best"
        state = "best" if tried == result.best else equal if tied else tried.state
        rows.add_row(*(f"{tried.values[name]:g}" for name in names), _value(tried, result), state)
    rows.add_row(*("" for _ in names[1:]), "plain", _value(result.baseline, result), "baseline")
    return rows


def _row(tried: Candidate, text: MetricText) -> dict[str, Any]:
    row = vars(tried) | {"accuracy": tried.accuracy}
    if text.is_accuracy:
        return row
    # JSON has no infinity, which is the value of a failed trial
    values = [v if math.isfinite(v) else None for v in (*row.pop("accuracies"), row.pop("accuracy"))]
    return row | {"values_of_metric": values[:-1], "mean": values[-1]}


def _value(tried: Candidate, result: TuningResult) -> str:
    mean, std = mean_std([MetricText(result.metric).scale * a for a in tried.accuracies] or [0.0])
    if not math.isfinite(mean):
        return NONE
    places = _decimals(result)
    return f"{mean:.{places}f}" + ("" if std is None else f" ± {std:.{places}f}")


def _decimals(result: TuningResult) -> int:
    """Return how many decimals are worth printing: of percent 2."""
    if result.metric.percent:
        return 2
    complete = [result.baseline, *(t for t in result.trials if t.state == "complete")]
    fresh = (result.tuned_again, result.plain_again)
    spreads = [mean_std(values) for values in (*fresh, *(t.accuracies for t in complete))]
    return decimals([m for m, _ in spreads], [s for _, s in spreads if s is not None])
