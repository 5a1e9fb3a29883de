"""One row per data set, network and method: what the runs of all seeds say together."""

from __future__ import annotations

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
    """What the runs of one method say on one data set and network.

    Attributes:
        dataset: Name of the data set.
        model: Name of the network.
        method: Label of the method.
        summary: One sentence about the method.
        ok: Seeds that ran to the end; the numbers below are over these.
        failed: Seeds that stopped with an error.
        unfinished: Seeds without a result yet.
        last: Test accuracy after the last epoch, in percent.
        best: Test accuracy after the epoch of highest validation accuracy, in percent.
        best_of_all: The largest test accuracy of any network, branch or ensemble at any epoch, in percent: no fair
            number, as nothing can choose it without the test images. None unless every epoch was tested.
        forward: Forward passes per batch.
        backward: Backward passes per batch.
        updates: Optimizer updates per batch.
        seconds: Training seconds of a run.
        time_ratio: Training seconds over plain's, on the seeds that both finished.
        memory: Peak memory in MB.
        difference: Last-epoch test accuracy minus plain's, in percentage points, paired by seed.
        controls: The same difference to each control of the method that this comparison has.
        decimals: Decimals worth printing: 2 where the test set has 2,000 images or more, else 1.
        is_control: Whether another method names this one as its control.
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
    is_control: bool = False

    @property
    def is_baseline(self) -> bool:
        """Return whether this is plain training, which every method is compared with."""
        return self.method == BASELINE


def controls_of(comparison: Comparison, method: str) -> list[str]:
    """Return the controls that the method names and the comparison has, in its order."""
    named = comparison.methods[method].get("controls") or []
    return [str(c) for c in named if c in comparison.methods and c != method]


def all_controls(comparison: Comparison) -> list[str]:
    """Return every method that is the control of another, in row order."""
    named = {c for method in comparison.methods for c in controls_of(comparison, method)}
    return [method for method in comparison.methods if method in named]


def groups(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the (data set, network) pairs, in the order of the grid."""
    return list(dict.fromkeys((r.dataset, r.model) for r in comparison.records))


def chosen(comparison: Comparison, group: tuple[str, str], method: str) -> list[Record]:
    """Return the runs of one method on one data set and network, in the order of the grid."""
    return [r for r in comparison.records if (r.dataset, r.model) == group and r.method == method]


def best_of_all(record: Record) -> float | None:
    """Return the largest test accuracy of a run at any epoch, of anything it could deploy, in percent.

    None for a run that did not look at the test images after each epoch (``watch.test``).
    """
    found = [
        float(part["accuracy"])
        for line in record.metrics
        for part in ({"accuracy": line.get("test_accuracy")}, *(line.get("test_outputs") or {}).values())
        if part.get("accuracy") is not None
    ]
    return 100 * max(found) if found else None


def rows(comparison: Comparison) -> list[ResultRow]:
    """Summarise a comparison: one row per data set, network and method, in that order.

    Means and standard deviations are over finished seeds; differences are over the seeds that both methods
    finished, with Student's 95 % t interval (see ``steppe.report.statistics.paired_difference``).
    """
    every = all_controls(comparison)
    return [
        _row(comparison, group, method, every)
        for group in groups(comparison)
        for method in comparison.methods
        if chosen(comparison, group, method)
    ]


def _row(comparison: Comparison, group: tuple[str, str], method: str, every: list[str]) -> ResultRow:
    records = chosen(comparison, group, method)
    statuses = [r.status for r in records]
    results = _results(records)
    plain = {} if method == BASELINE else _results(chosen(comparison, group, BASELINE))
    controls = {
        control: difference
        for control in controls_of(comparison, method)
        if (difference := _difference(results, _results(chosen(comparison, group, control))))
    }
    test_images = comparison.data.get(group[0], {}).get("test") or 0
    return ResultRow(
        dataset=group[0],
        model=group[1],
        method=method,
        summary=str(comparison.methods[method].get("summary") or ""),
        ok=statuses.count("ok"),
        failed=statuses.count("failed"),
        unfinished=statuses.count("unfinished"),
        last=spread(_accuracy(r, "last") for r in results.values()),
        best=spread(_accuracy(r, "best") for r in results.values()),
        best_of_all=spread(best_of_all(r) for r in records if r.status == "ok"),
        forward=_mean(_passes(r, "forward") for r in results.values()),
        backward=_mean(_passes(r, "backward") for r in results.values()),
        updates=_mean(_passes(r, "updates") for r in results.values()),
        seconds=_mean(r.get("seconds") for r in results.values()),
        time_ratio=1.0 if method == BASELINE and results else _ratio(results, plain),
        memory=_mean(r.get("peak_memory_mb") for r in results.values()),
        difference=_difference(results, plain),
        controls=controls,
        decimals=2 if test_images >= 2000 else 1,
        is_control=method in every,
    )


def _results(records: list[Record]) -> dict[int, dict[str, Any]]:
    return {r.seed: r.result for r in records if r.status == "ok" and r.result is not None}


def _accuracy(result: Mapping[str, Any], which: str) -> float | None:
    accuracy = (result["test"].get(which) or {}).get("accuracy")
    return None if accuracy is None else 100 * accuracy


def _passes(result: Mapping[str, Any], which: str) -> float | None:
    return (result.get("passes") or {}).get(which)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the mean, deviation and count of the values that are known; None if none is."""
    known = [v for v in values if v is not None]
    return Spread(*mean_std(known), len(known)) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    found = spread(values)
    return found.mean if found else None


def paired(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> Difference | None:
    """Return the mean difference of ``a - b`` over the seeds that have a value in both; None without any."""
    known = [(x, y) for seed, x in a.items() if x is not None and (y := b.get(seed)) is not None]
    return paired_difference([x for x, _ in known], [y for _, y in known]) if known else None


def _difference(a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]]) -> Difference | None:
    return paired(*({seed: _accuracy(r, "last") for seed, r in runs.items()} for runs in (a, b)))


def _ratio(a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]]) -> float | None:
    both = [(a[seed].get("seconds"), b[seed].get("seconds")) for seed in a if seed in b]
    known = [(x, y) for x, y in both if x is not None and y is not None]
    below = sum(y for _, y in known)
    return sum(x for x, _ in known) / below if below else None
