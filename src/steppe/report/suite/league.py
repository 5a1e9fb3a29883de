"""The league table of a suite: each row's ranks, wins and distances to the best over all tasks, in one view.

Only methods are ranked, plain among them; a control is compared with them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from steppe.records.suite import SuiteRecords
from steppe.report import formatting
from steppe.report.comparison.summary import BASELINE, ResultRow, rows
from steppe.report.formatting import count, listed, plain_text
from steppe.report.metric_text import MetricText

VIEWS = {"compute": "At equal compute", "epochs": "At equal epochs"}
WITHIN = (0.05, 0.2)  # of the table; the figure has all


@dataclass(frozen=True)
class Standing:
    """One row over all tasks.

    Attributes:
        row, control: Its name, and whether it is a control.
        cells: Its result on each task that has one.
        rank: Mean over its tasks of its rank by mean among the methods that have every task (and itself), equal
            ones at their mean rank; among all methods if fewer than two have; None for controls.
        complete: Whether it has a result on every task.
        first: Number of tasks on which no method has a better mean; None for controls.
        won, lost: Numbers of tasks on which it is significantly better or worse than plain.
        excess: Per task the error or loss over that of the best method, minus 1 (see `excess_over`).
        cost: Means over its tasks of passes, seconds and time over plain's.
    """

    row: str
    control: bool
    cells: dict[str, ResultRow]
    rank: float | None
    complete: bool
    first: int | None
    won: int
    lost: int
    excess: dict[str, float]
    cost: ResultRow

    @property
    def has_controls(self) -> bool:
        """Return whether a control of the row has a result on one of its tasks."""
        return any(result.controls for result in self.cells.values())

    def share_within(self, x: float) -> float | None:
        """Return the share of its tasks on which the excess is at most ``x``; None without any."""
        close = [value <= x + 1e-12 for value in self.excess.values()]
        return sum(close) / len(close) if close else None


def standings(suite: SuiteRecords, view: str) -> list[Standing]:
    """Return the standing of each row in a view.

    Methods with a result on every task are first, by mean rank, then the other methods, whose ranks are of fewer
    tasks, then controls in the suite's order.
    """
    comparison = suite.views[view]
    cells: dict[str, dict[str, ResultRow]] = {name: {} for name in comparison.methods}
    for result in rows(comparison):
        if result.last is not None:
            cells[result.method][result.dataset] = result
    methods = [name for name in cells if name not in suite.controls]
    by_task = {
        task: {name: cells[name][task] for name in methods if task in cells[name]}
        for task in dict.fromkeys(task for name in methods for task in cells[name])
    }
    complete = [name for name in methods if cells[name].keys() == by_task.keys()]
    # a task on which few methods have a result would give these low ranks
    peers = complete if len(complete) > 1 else methods
    ranks = {task: _ranks(own, peers) for task, own in by_task.items()}
    all_ = [_standing(name, name in suite.controls, own, by_task, ranks) for name, own in cells.items() if own]
    return sorted(all_, key=lambda s: (s.control, not s.control and not s.complete, s.rank or 0.0))


def excess_over(value: float, best: float, text: MetricText) -> float | None:
    """Return the error or loss of ``value`` over that of ``best``, minus 1: 0.1 is a tenth more.

    The error of a share is 100 minus it in percent; of a metric that is better when lower it is the value itself.
    Other metrics have none, and neither has a best value below 0. At a best error of 0 the excess of any other is
    infinite.
    Source: the performance ratio of Dolan and More, Benchmarking optimization software with performance profiles,
    Mathematical Programming 91 (2002), with errors in the place of times.
    """
    if text.metric.higher and not text.metric.percent:
        return None
    a, b = (100 - v if text.metric.higher else v for v in (value, best))
    if b <= 0:
        return None if b < 0 else math.inf if a > 0 else 0.0
    return a / b - 1


def lede(all_: Sequence[Standing]) -> list[str]:
    """Return the result of a view in sentences."""
    methods = [s for s in all_ if not s.control]
    if len(methods) < 2:
        return ["No two methods have finished runs yet."]
    tasks = count(len({task for s in methods for task in s.cells}), "task")
    ranked = [s for s in methods if s.complete and s.rank is not None]
    if len(ranked) < 2:
        texts = [f"No two methods have a result on each of {tasks} yet: mean ranks are not comparable."]
    else:
        top = min(s.rank for s in ranked if s.rank is not None)
        names = [plain_text(s.row) for s in ranked if s.rank is not None and s.rank <= top + 1e-12]
        have = f"{listed(names)} {'has' if len(names) == 1 else 'have'}"
        others = len(methods) - len(ranked)
        left_out = f" ({count(others, 'method')} without a result on some task left out)" if others else ""
        texts = [f"{have} the best mean rank, {top:.1f} among {len(ranked)} methods over {tasks}{left_out}."]
    better = sorted((s for s in methods if s.won > s.lost), key=lambda s: s.lost - s.won)
    wins = [f"{plain_text(s.row)} on {s.won}{f' (worse on {s.lost})' if s.lost else ''}" for s in better]
    if wins:
        texts.append(f"Significantly better than plain on more tasks than worse: {listed(wins)}.")
    else:
        texts.append("No method is significantly better than plain on more tasks than it is worse.")
    return texts


def chance(all_: Sequence[Standing]) -> str:
    """Return how many differences to plain would be significant by chance; empty if there are no intervals."""
    methods = [s for s in all_ if not s.control and s.row != BASELINE]
    differences = [r.difference for s in methods for r in s.cells.values()]
    pairs = sum(d is not None and d.low is not None for d in differences)
    if not pairs:
        return ""
    return (
        f"The intervals are not adjusted: of {count(pairs, 'difference')} without any effect, about "
        f"{0.025 * pairs:.1f} would be counted as better and as many as worse."
    )


def cell(result: ResultRow) -> str:
    """Return a result as text: mean and deviation, and the difference to plain with its interval."""
    value = formatting.spread(result.last, result.decimals)
    if result.difference is None:
        return value
    text = formatting.difference(result.difference, result.decimals, result.ok)
    return f"{value}; {text}{f' {formatting.MARK}' if result.difference.significant else ''}"


def _standing(
    name: str,
    control: bool,
    own: dict[str, ResultRow],
    by_task: dict[str, dict[str, ResultRow]],
    ranks: dict[str, dict[str, float]],
) -> Standing:
    gains = [r.text.gain(r.difference.mean) for r in own.values() if r.difference and r.difference.significant]
    excess: dict[str, float] = {}
    for task, result in own.items():
        peers = [mean for other in by_task.get(task, {}).values() if (mean := _mean(other)) is not None]
        value = excess_over(_mean(result) or 0.0, result.text.best(peers), result.text) if peers else None
        excess |= {task: value} if value is not None else {}
    return Standing(
        row=name,
        control=control,
        cells=own,
        rank=None if control else fmean(ranks[task][name] for task in own),
        complete=own.keys() == by_task.keys(),
        first=None if control else sum(_is_best(result, by_task[task]) for task, result in own.items()),
        won=sum(gain > 0 for gain in gains),
        lost=sum(gain < 0 for gain in gains),
        excess=excess,
        cost=_cost(name, list(own.values())),
    )


def _ranks(results: dict[str, ResultRow], peers: Sequence[str]) -> dict[str, float]:
    """Return the rank of each method's mean on one task among peers, equal means at the mean of their ranks."""
    gains = {name: _gain(result) for name, result in results.items()}
    ranks = {}
    for name, own in gains.items():
        others = [gains[peer] for peer in peers if peer in gains and peer != name]
        ranks[name] = 1 + sum(g > own for g in others) + sum(g == own for g in others) / 2
    return ranks


def _is_best(result: ResultRow, results: dict[str, ResultRow]) -> bool:
    return all(_gain(result) >= _gain(other) for other in results.values())


def _gain(result: ResultRow) -> float:
    return result.text.gain(_mean(result) or 0.0)


def _mean(result: ResultRow) -> float | None:
    return None if result.last is None else result.last.mean


def _cost(name: str, results: Sequence[ResultRow]) -> ResultRow:
    def mean(values: list[float | None]) -> float | None:
        numbers = [v for v in values if v is not None]
        return fmean(numbers) if numbers else None

    kinds = ("forward", "backward", "updates", "seconds", "time_ratio")
    means = {kind: mean([getattr(r, kind) for r in results]) for kind in kinds}
    return ResultRow("", "", name, results[0].summary, **means)  # type: ignore[arg-type]
