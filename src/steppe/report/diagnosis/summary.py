"""The diagnoses of a comparison's runs: a row per method, differences to plain, rank correlations."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe.errors import InputError
from steppe.records import Comparison, Record
from steppe.report.comparison.summary import BASELINE, Spread, paired, runs_of, spread, value_of
from steppe.report.diagnosis.wording import WORDING, Wording, wording_of
from steppe.report.metric_text import MetricText
from steppe.report.statistics import Difference
from steppe.tasks.metric import Metric

DIAGNOSIS, ENDS, PATHS = "diagnosis.json", "diagnosis-ends.json", "diagnosis-paths.json"


@dataclass(frozen=True)
class DiagnosedRun:
    """A finished run and its diagnosis, the content of its ``diagnosis.json``."""

    record: Record
    diagnosis: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A column: its name, a sentence about it, a run's value, decimals (None: 3 digits) and its axis."""

    name: str
    about: str
    of: Callable[[DiagnosedRun], float | None]
    decimals: int | None = None
    axis: str = "Rise of the loss{nats}"


@dataclass(frozen=True)
class DiagnosisRow:
    """One method: its runs, and the spread over seeds of each measure by name."""

    method: str
    runs: list[DiagnosedRun]
    values: dict[str, Spread | None]
    wording: Wording = WORDING


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b of a measure with the metric, over the means of ``n`` methods, and its exact p-value."""

    tau: float
    p: float
    n: int


def at(*path: str, scale: float = 1.0) -> Callable[[DiagnosedRun], float | None]:
    """Return the function that reads a number at a path of the diagnosis; None where the path ends early."""

    def value(run: DiagnosedRun) -> float | None:
        content: Any = run.diagnosis
        for key in path:
            content = None if content is None else content[key]
        return None if content is None else scale * float(content)

    return value


def _metric(run: DiagnosedRun) -> float | None:
    result = run.record.result or {}
    block = (result.get("test") or {}).get(run.diagnosis["which"]) or {}
    return value_of(block, MetricText(Metric.from_dict(result.get("metric"))))


def _line_rise(run: DiagnosedRun) -> float | None:
    losses = run.diagnosis["line"]["loss"]
    middle = losses[len(losses) // 2]
    if None in losses:
        return None
    return float(sum(losses) / len(losses) - middle)


def _gradients(run: DiagnosedRun) -> float | None:
    ends = run.record.metrics[-1:]
    value = ends[0].get("gradients") if ends else None
    return None if value is None else float(value)


METRIC = Measure("Test {metric}", "Of the weights that were measured.", _metric, 1)

SHARPNESS = (
    Measure(
        "SAM sharpness",
        "Rise of the loss at the end of one gradient step of length {rho} (Foret et al.).",
        at("sharpness", "sam"),
    ),
    Measure(
        "Worst of {steps} steps",
        "The highest rise at the end of {steps} steps of projected gradient ascent in the same ball.",
        at("sharpness", "steps"),
    ),
    Measure(
        "Adaptive",
        "The same rise where each weight may change in proportion to its size, by {adaptive:g} times in all. It "
        "does not change when layers are rescaled (Kwon et al.).",
        at("sharpness", "adaptive"),
    ),
    Measure(
        "Filter noise",
        "Mean rise under Gaussian noise on each weight, {gamma} times its filter's norm.",
        at("sharpness", "filter", "mean"),
    ),
    Measure("Along a line", "Mean rise along the random line of the first figure.", _line_rise),
    Measure(
        "Top eigenvalue",
        "Largest eigenvalue of the loss's Hessian.",
        lambda run: run.diagnosis["hessian"]["values"][0],
        axis="Eigenvalue",
    ),
    Measure(
        "Trace", "Trace of the Hessian, estimated.", at("hessian", "trace", "mean"), axis="Sum of eigenvalues"
    ),
)

CORRUPTED = Measure(
    "Corrupted accuracy, %", "Mean over 15 corruptions at 5 severities.", at("robustness", "mean", scale=100), 1
)

CALIBRATION = Measure("ECE, %", "Expected calibration error.", at("calibration", "ece", scale=100), 1)

MEASURES = (
    METRIC,
    Measure("Loss", "{loss} on the {kind} measured{in_nats}.", at("loss")),
    *SHARPNESS,
    CORRUPTED,
    CALIBRATION,
    Measure("Gradient evaluations", "Backward passes over a batch in the whole run: the cost.", _gradients, 0),
)


def load_diagnoses(comparison: Comparison) -> list[DiagnosedRun]:
    """Return the finished runs that have a diagnosis, in the order of the grid.

    Raises:
        InputError: No run has one, or a file is damaged.
    """
    runs = [run for run in _attempts(comparison) if "error" not in run.diagnosis]
    if not runs:
        raise InputError(
            f"no run of {comparison.folder} has been diagnosed; run steppe diagnose {comparison.folder}"
        )
    return runs


def not_measured(comparison: Comparison) -> list[tuple[str, str]]:
    """Return each finished run that could not be measured, and why."""
    failed = [run for run in _attempts(comparison) if "error" in run.diagnosis]
    return [(f"{run.record.method}, seed {run.record.seed}", run.diagnosis["error"]) for run in failed]


def _attempts(comparison: Comparison) -> list[DiagnosedRun]:
    paths = [(r, comparison.folder / "runs" / r.digest / DIAGNOSIS) for r in comparison.records]
    return [DiagnosedRun(r, _read(path)) for r, path in paths if r.status == "ok" and path.exists()]


def load_cross_run(comparison: Comparison, group: tuple[str, str], file: str) -> dict[str, Any] | None:
    """Return the endpoints (``file`` is ENDS) or trajectories (PATHS) of one seed's runs; None if not measured.

    Raises:
        InputError: The file is damaged.
    """
    path = comparison.folder / file
    content: dict[str, Any] = _read(path) if path.exists() else {}
    return content.get(", ".join(group))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path} is damaged; delete it and run steppe diagnose again") from None
    return content


def diagnosis_rows(comparison: Comparison, group: tuple[str, str], runs: list[DiagnosedRun]) -> list[DiagnosisRow]:
    """Return a row per method of one data set and network that has a diagnosed run, in the order of the study."""
    rows, wording = [], wording_of(comparison, group[0])
    for method in comparison.methods:
        digests = {r.digest for r in runs_of(comparison, group, method)}
        own = [run for run in runs if run.record.digest in digests]
        if own:
            rows.append(DiagnosisRow(method, own, {m.name: over_runs(own, m) for m in MEASURES}, wording))
    return rows


def present(rows: list[DiagnosisRow], measures: Sequence[Measure] = MEASURES) -> list[Measure]:
    """Return the measures; those of classes only if a row has them."""
    absent = [m for m in (CORRUPTED, CALIBRATION) if not any(row.values.get(m.name) for row in rows)]
    return [m for m in measures if m not in absent]


def over_runs(runs: list[DiagnosedRun], measure: Measure) -> Spread | None:
    """Return mean and deviation of a measure over runs; None if none has it."""
    return spread(measure.of(run) for run in runs)


def differences_to_plain(rows: list[DiagnosisRow], measure: Measure) -> dict[str, Difference]:
    """Return each method's mean difference to plain training, paired by seed, with Student's 95 % interval."""
    by_seed = {row.method: {run.record.seed: measure.of(run) for run in row.runs} for row in rows}
    plain = by_seed.pop(BASELINE, {})
    differences = {method: paired(own, plain) for method, own in by_seed.items()}
    return {method: difference for method, difference in differences.items() if difference}


def rank_correlation(rows: list[DiagnosisRow], measure: Measure) -> RankCorrelation | None:
    """Return the rank correlation of a measure with the test metric; None for fewer than 3 methods or a constant.

    Kendall's tau-b over method means (Kendall, Biometrika 33, 1945), -1 to 1. The p-value is that of "no
    association" with methods as independent draws, exact without ties.
    """
    pairs = [(a.mean, b.mean) for r in rows if (a := r.values[METRIC.name]) and (b := r.values[measure.name])]
    if len(pairs) < 3 or any(len({p[i] for p in pairs}) == 1 for i in (0, 1)):
        return None
    from scipy.stats import kendalltau

    result = kendalltau([a for a, _ in pairs], [b for _, b in pairs])
    return RankCorrelation(float(result.statistic), float(result.pvalue), len(pairs))


def with_settings(text: str, row: DiagnosisRow) -> str:
    """Return a measure's name or sentence with settings, metric and loss in place."""
    settings = row.runs[0].diagnosis["settings"]
    return text.format(**row.wording.settings() | settings, adaptive=10 * settings["rho"])
