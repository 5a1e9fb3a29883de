"""The results of a comparison: one row per data set, network and method, over the seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steppe.records import Comparison, Record
from steppe.report.statistics import Difference, mean_std, paired_difference

BASELINE = "plain"


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, sample standard deviation (None for one seed) and the number of seeds."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class ResultRow:
    """The results of one method on one data set and network.

    Attributes:
        dataset, model, method, summary: Their names, and one sentence about the method.
        ok, failed, unfinished: Numbers of seeds. All that follows is over those that finished (``ok``).
        last, best: Test accuracy in percent after the last epoch, and after the best validation epoch.
        best_of_all: The largest test accuracy of any network, branch or ensemble at any epoch, in percent. It
            cannot be chosen without the test images. None unless every epoch was tested (``watch.test``).
        forward, backward, updates: Passes and optimizer updates per batch.
        seconds, time_ratio: Training seconds of a run, and over plain's on the seeds that both finished.
        memory: Peak memory in MB.
        difference: Last-epoch test accuracy minus plain's, in percentage points, paired by seed.
        controls: The same difference to each control of the method that this comparison has, plain excepted.
        decimals: Decimals worth printing.
    """

    dataset: str
    model: str
    method: str
    summary: str = ""
    ok: int = 0
    failed: int = 0
    unfinished: int = 0
    last: Spread | None = None
    best: Spread | None = None
    best_of_all: Spread | None = None
    forward: float | None = None
    backward: float | None = None
    updates: float | None = None
    seconds: float | None = None
    time_ratio: float | None = None
    memory: float | None = None
    difference: Difference | None = None
    controls: dict[str, Difference] = field(default_factory=dict)
    decimals: int = 1


def controls_of(comparison: Comparison, method: str) -> list[str]:
    """Return the controls of the method that the comparison has, in the method's order.

    Plain is not among them: every method is compared with it anyway, and once.
    """
    names = comparison.methods[method].get("controls") or []
    return [c for c in dict.fromkeys(map(str, names)) if c in comparison.methods and c not in (method, BASELINE)]


def all_controls(comparison: Comparison) -> list[str]:
    """Return every method that is the control of another, in row order."""
    named = {c for method in comparison.methods for c in controls_of(comparison, method)}
    return [method for method in comparison.methods if method in named]


def groups(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the (data set, network) pairs, in the order of the grid."""
    return list(dict.fromkeys((r.dataset, r.model) for r in comparison.records))


def runs_of(comparison: Comparison, group: tuple[str, str], method: str) -> list[Record]:
    """Return the runs of one method on one data set and network, in the order of the grid."""
    return [r for r in comparison.records if (r.dataset, r.model) == group and r.method == method]


def decimals(comparison: Comparison, dataset: str, part: str = "test") -> int:
    """Return how many decimals of an accuracy are worth printing: 2 from 2,000 images on, else 1."""
    return 2 if (comparison.data.get(dataset, {}).get(part) or 0) >= 2000 else 1


def rows(comparison: Comparison) -> list[ResultRow]:
    """Summarise a comparison: one row per data set, network and method, in that order.

    Means and standard deviations are over finished seeds. Differences are over the seeds that both methods
    finished, with Student's 95 % t interval (see ``steppe.report.statistics.paired_difference``).
    """
    return [
        _row(comparison, group, method)
        for group in groups(comparison)
        for method in comparison.methods
        if runs_of(comparison, group, method)
    ]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean, deviation and count of the values that are not None; None if all are."""
    numbers = [v for v in values if v is not None]
    return Spread(*mean_std(numbers), len(numbers)) if numbers else None


def paired(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> Difference | None:
    """Return the mean difference ``a - b`` over the seeds with a value in both; None without any."""
    pairs = [(x, y) for seed, x in a.items() if x is not None and (y := b.get(seed)) is not None]
    return paired_difference([x for x, _ in pairs], [y for _, y in pairs]) if pairs else None


def _row(comparison: Comparison, group: tuple[str, str], method: str) -> ResultRow:
    records = runs_of(comparison, group, method)
    statuses = [r.status for r in records]
    results = _results(records)
    last = _last(results)
    plain = _results(runs_of(comparison, group, BASELINE))
    others = {c: _results(runs_of(comparison, group, c)) for c in controls_of(comparison, method)}
    controls = {c: paired(last, _last(runs)) for c, runs in others.items()}
    passes = [r.get("passes") or {} for r in results.values()]
    return ResultRow(
        dataset=group[0],
        model=group[1],
        method=method,
        summary=str(comparison.methods[method].get("summary") or ""),
        ok=statuses.count("ok"),
        failed=statuses.count("failed"),
        unfinished=statuses.count("unfinished"),
        last=spread(last.values()),
        best=spread(_accuracy(r, "best") for r in results.values()),
        best_of_all=spread(_best_of_all(r) for r in records if r.status == "ok"),
        forward=_mean(p.get("forward") for p in passes),
        backward=_mean(p.get("backward") for p in passes),
        updates=_mean(p.get("updates") for p in passes),
        seconds=_mean(r.get("seconds") for r in results.values()),
        time_ratio=_time_ratio(results, plain),
        memory=_mean(r.get("peak_memory_mb") for r in results.values()),
        difference=None if method == BASELINE else paired(last, _last(plain)),
        controls={c: difference for c, difference in controls.items() if difference},
        decimals=decimals(comparison, group[0]),
    )


def _results(records: list[Record]) -> dict[int, dict[str, Any]]:
    return {r.seed: r.result for r in records if r.status == "ok" and r.result is not None}


def _last(results: Mapping[int, Mapping[str, Any]]) -> dict[int, float | None]:
    return {seed: _accuracy(result, "last") for seed, result in results.items()}


def _accuracy(result: Mapping[str, Any], which: str) -> float | None:
    accuracy = (result["test"].get(which) or {}).get("accuracy")
    return None if accuracy is None else 100 * accuracy


def _best_of_all(record: Record) -> float | None:
    """Return the largest test accuracy of any output at any epoch, in percent; None if no epoch was tested."""
    accuracies = [
        float(output["accuracy"])
        for line in record.metrics
        for output in ({"accuracy": line.get("test_accuracy")}, *(line.get("test_outputs") or {}).values())
        if output.get("accuracy") is not None
    ]
    return 100 * max(accuracies) if accuracies else None


def _mean(values: Iterable[float | None]) -> float | None:
    summary = spread(values)
    return summary.mean if summary else None


def _time_ratio(results: Mapping[int, Mapping[str, Any]], plain: Mapping[int, Mapping[str, Any]]) -> float | None:
    """Return training time over plain's, on the seeds that both finished."""
    times = [(r.get("seconds"), plain[seed].get("seconds")) for seed, r in results.items() if seed in plain]
    pairs = [(x, y) for x, y in times if x is not None and y is not None]
    reference = sum(y for _, y in pairs)
    return sum(x for x, _ in pairs) / reference if reference else None
