"""The results of a comparison: one row per data set, network and method, over the seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steppe.records import Comparison, Record
from steppe.report import metric_text
from steppe.report.formatting import samples_name
from steppe.report.metric_text import ACCURACY_TEXT, MetricText, text_of
from steppe.report.statistics import Difference, mean_std, paired_difference
from steppe.tasks.metric import Metric

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
        last, best: Value of the metric on the test data (accuracy: in percent) after the last epoch, and after
            the best validation epoch.
        best_of_all: The best test value of any network, branch or ensemble at any epoch. It cannot be chosen
            without the test data. None unless every epoch was tested (``watch.test``).
        forward, backward, updates: Passes and optimizer updates per batch.
        seconds, time_ratio: Training seconds of a run, and over plain's on the seeds that both finished.
        memory: Peak memory in MB.
        difference: Last-epoch test value minus plain's (accuracy: in percentage points), paired by seed.
        controls: The same difference to each control of the method that this comparison has, plain excepted.
        decimals: Decimals worth printing.
        text: How the metric of the data set is written.
        samples: What the data set's samples are: images, rows, ...
        constant: Test value of predicting the mean of the training targets; None where that is not known.
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
    text: MetricText = ACCURACY_TEXT
    samples: str = "images"
    constant: float | None = None

    @property
    def without_value(self) -> int:
        """Return how many runs ended with a metric that is not finite, as a correlation of constants."""
        return self.ok - (self.last.n if self.last else 0)


def metric_of(comparison: Comparison, dataset: str) -> MetricText:
    """Return how the metric of a data set is written; older records have none, which is accuracy.

    Raises:
        InputError: The metric of the record is damaged.
    """
    return MetricText(Metric.from_dict(comparison.data.get(dataset, {}).get("metric")))


def metric_of_all(comparison: Comparison) -> MetricText:
    """Return how the metrics of all data sets are written together."""
    return text_of(metric_of(comparison, dataset).metric for dataset, _ in groups(comparison))


def samples_of_all(comparison: Comparison) -> str:
    """Return what the samples of all data sets are: images, rows, ..., or samples where they differ."""
    names = {samples_name(about) for about in comparison.data.values()}
    return names.pop() if len(names) == 1 else "samples" if names else "images"


def value_of(block: Mapping[str, Any], text: MetricText, part: str = "") -> float | None:
    """Return the metric's value in a block of a record, as it is printed; None if it has none."""
    value = block.get(text.key(part))
    return None if value is None else text.scale * float(value)


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


def decimals(comparison: Comparison, group: tuple[str, str], part: str = "test") -> int:
    """Return how many decimals of the metric are worth printing.

    Percent have 2 from 2,000 samples on, else 1. Other metrics show two digits of the spread over seeds.
    """
    dataset = group[0]
    text = metric_of(comparison, dataset)
    if text.metric.percent:
        return 2 if (comparison.data.get(dataset, {}).get(part) or 0) >= 2000 else 1
    finished = (_results(runs_of(comparison, group, method)) for method in comparison.methods)
    spreads = [s for results in finished if (s := spread(_last(results, text).values()))]
    return metric_text.decimals([s.mean for s in spreads], [s.std for s in spreads if s.std is not None])


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
    text = metric_of(comparison, group[0])
    last = _last(results, text)
    plain = _results(runs_of(comparison, group, BASELINE))
    others = {c: _results(runs_of(comparison, group, c)) for c in controls_of(comparison, method)}
    controls = {c: paired(last, _last(runs, text)) for c, runs in others.items()}
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
        best=spread(value_of(r["test"].get("best") or {}, text) for r in results.values()),
        best_of_all=spread(_best_of_all(r, text) for r in records if r.status == "ok"),
        forward=_mean(p.get("forward") for p in passes),
        backward=_mean(p.get("backward") for p in passes),
        updates=_mean(p.get("updates") for p in passes),
        seconds=_mean(r.get("seconds") for r in results.values()),
        time_ratio=_time_ratio(results, plain),
        memory=_mean(r.get("peak_memory_mb") for r in results.values()),
        difference=None if method == BASELINE else paired(last, _last(plain, text)),
        controls={c: difference for c, difference in controls.items() if difference},
        decimals=decimals(comparison, group),
        text=text,
        samples=samples_name(comparison.data.get(group[0], {})),
        constant=value_of({text.key(): comparison.data.get(group[0], {}).get("constant")}, text),
    )


def _results(records: list[Record]) -> dict[int, dict[str, Any]]:
    return {r.seed: r.result for r in records if r.status == "ok" and r.result is not None}


def _last(results: Mapping[int, Mapping[str, Any]], text: MetricText) -> dict[int, float | None]:
    return {seed: value_of(result["test"].get("last") or {}, text) for seed, result in results.items()}


def _best_of_all(record: Record, text: MetricText) -> float | None:
    """Return the best test value of any output at any epoch; None if no epoch was tested."""
    values = [
        value
        for line in record.metrics
        for value in (
            value_of(line, text, "test"),
            *(value_of(output, text) for output in (line.get("test_outputs") or {}).values()),
        )
        if value is not None
    ]
    return text.best(values) if values else None


def _mean(values: Iterable[float | None]) -> float | None:
    summary = spread(values)
    return summary.mean if summary else None


def _time_ratio(results: Mapping[int, Mapping[str, Any]], plain: Mapping[int, Mapping[str, Any]]) -> float | None:
    """Return training time over plain's, on the seeds that both finished."""
    times = [(r.get("seconds"), plain[seed].get("seconds")) for seed, r in results.items() if seed in plain]
    pairs = [(x, y) for x, y in times if x is not None and y is not None]
    reference = sum(y for _, y in pairs)
    return sum(x for x, _ in pairs) / reference if reference else None
