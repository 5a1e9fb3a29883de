"""What the diagnoses of a comparison's runs say together: a row per method, and what goes with accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steppe.errors import InputError
from steppe.records import Comparison, Record
from steppe.report.comparison.summary import BASELINE, Spread, chosen
from steppe.report.statistics import Difference, mean_std, paired_difference

DIAGNOSIS, ENDS, PATHS = "diagnosis.json", "diagnosis-ends.json", "diagnosis-paths.json"


@dataclass(frozen=True)
class Diagnosed:
    """A finished run and its diagnosis, the content of its ``diagnosis.json``."""

    record: Record
    found: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A column: its name, what it is in a sentence, a run's value, decimals (None: 3 digits) and its axis."""

    name: str
    about: str
    of: Callable[[Diagnosed], float | None]
    decimals: int | None = None
    axis: str = "Rise of the loss, nats"


@dataclass(frozen=True)
class DiagnosisRow:
    """One method: its runs, and the spread over seeds of each measure by name."""

    method: str
    runs: list[Diagnosed]
    values: dict[str, Spread | None]


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of a measure with test accuracy, over the means of ``n`` methods, and its exact p-value."""

    tau: float
    p: float
    n: int


def _accuracy(run: Diagnosed) -> float | None:
    result = run.record.result or {}
    value = ((result.get("test") or {}).get(run.found["which"]) or {}).get("accuracy")
    return None if value is None else 100 * float(value)


def _line_rise(run: Diagnosed) -> float | None:
    losses = run.found["line"]["loss"]
    middle = losses[len(losses) // 2]
    if None in losses:
        return None
    return float(sum(losses) / len(losses) - middle)


def _gradients(run: Diagnosed) -> float | None:
    ends = run.record.metrics[-1:]
    value = ends[0].get("gradients") if ends else None
    return None if value is None else float(value)


ACCURACY = Measure("Test accuracy, %", "Of the weights that were measured.", _accuracy, 1)

SHARPNESS = (
    Measure(
        "SAM sharpness",
        "Rise of the loss at the end of one gradient step of length {rho} (Foret et al.).",
        lambda r: r.found["sharpness"]["sam"],
    ),
    Measure(
        "Worst of {steps} steps",
        "The highest rise that {steps} steps of projected ascent find in the same ball.",
        lambda r: r.found["sharpness"]["steps"],
    ),
    Measure(
        "Adaptive",
        "The same rise where each weight may change in proportion to its size, by {adaptive:g} times in all; "
        "rescaling layers does not change it (Kwon et al.).",
        lambda r: r.found["sharpness"]["adaptive"],
    ),
    Measure(
        "Filter noise",
        "Mean rise under Gaussian noise on each weight, {gamma} of its filter's norm.",
        lambda r: r.found["sharpness"]["filter"]["mean"],
    ),
    Measure(
        "Along a line",
        "Mean rise over the random line drawn above.",
        _line_rise,
    ),
    Measure(
        "Top eigenvalue",
        "Largest eigenvalue of the loss's Hessian.",
        lambda r: r.found["hessian"]["values"][0],
        axis="Eigenvalue",
    ),
    Measure(
        "Trace",
        "Trace of the Hessian, estimated.",
        lambda r: r.found["hessian"]["trace"]["mean"],
        axis="Sum of eigenvalues",
    ),
)

CORRUPTED = Measure(
    "Corrupted accuracy, %",
    "Mean over 15 corruptions at 5 severities.",
    lambda r: 100 * r.found["robustness"]["mean"],
    1,
)

MEASURES = (
    ACCURACY,
    Measure("Loss", "Cross-entropy on the images measured, in nats.", lambda r: r.found["loss"]),
    *SHARPNESS,
    CORRUPTED,
    Measure("ECE, %", "Expected calibration error, 15 bins.", lambda r: 100 * r.found["calibration"]["ece"], 1),
    Measure("Gradient evaluations", "Backward passes over a batch in the whole run: the cost.", _gradients, 0),
)


def diagnosed(comparison: Comparison) -> list[Diagnosed]:
    """Return the finished runs that have a diagnosis, in the order of the grid.

    Raises InputError if there is none, or a file is damaged.
    """
    found = []
    for record in comparison.records:
        path = comparison.folder / "runs" / record.digest / DIAGNOSIS
        if record.status == "ok" and path.exists():
            try:
                found.append(Diagnosed(record, json.loads(path.read_text())))
            except ValueError:
                raise InputError(f"{path} is damaged; delete it and run steppe diagnose again") from None
    if not found:
        raise InputError(
            f"no run of {comparison.folder} has been diagnosed; run steppe diagnose {comparison.folder}"
        )
    return found


def together(comparison: Comparison, group: tuple[str, str], file: str) -> dict[str, Any] | None:
    """Return where the runs of one seed ended (``file`` ENDS) or how they went (PATHS); None if not measured.

    Raises InputError if the file is damaged.
    """
    path = comparison.folder / file
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path} is damaged; delete it and run steppe diagnose again") from None
    return content.get(", ".join(group))


def diagnosis_rows(comparison: Comparison, group: tuple[str, str], runs: list[Diagnosed]) -> list[DiagnosisRow]:
    """Return a row per method of one data set and network that has a diagnosed run, in the order of the study."""
    rows = []
    for method in comparison.methods:
        digests = {r.digest for r in chosen(comparison, group, method)}
        own = [run for run in runs if run.record.digest in digests]
        if own:
            rows.append(DiagnosisRow(method, own, {m.name: spread(own, m) for m in MEASURES}))
    return rows


def minus_plain(rows: list[DiagnosisRow], measure: Measure) -> dict[str, Difference]:
    """Return each method's mean difference to plain training, paired by seed, with Student's 95 % interval."""
    by_seed = {
        row.method: {r.record.seed: v for r in row.runs if (v := measure.of(r)) is not None} for row in rows
    }
    plain = by_seed.get(BASELINE, {})
    found = {}
    for method, own in by_seed.items():
        seeds = [seed for seed in own if seed in plain]
        if method != BASELINE and seeds:
            found[method] = paired_difference([own[s] for s in seeds], [plain[s] for s in seeds])
    return found


def agreement(rows: list[DiagnosisRow], measure: Measure) -> Agreement | None:
    """Return how a measure's order of methods agrees with that of test accuracy; None for fewer than 3 methods.

    Kendall's tau-b over method means (Kendall, Biometrika 33, 1945), -1 to 1. The p-value is that of "no
    association" with methods as independent draws, exact without ties.
    """
    pairs = [(a.mean, b.mean) for r in rows if (a := r.values[ACCURACY.name]) and (b := r.values[measure.name])]
    if len(pairs) < 3 or any(len({p[i] for p in pairs}) == 1 for i in (0, 1)):
        return None
    from scipy.stats import kendalltau

    done = kendalltau([a for a, _ in pairs], [b for _, b in pairs])
    return Agreement(float(done.statistic), float(done.pvalue), len(pairs))


def named(text: str, settings: Mapping[str, Any]) -> str:
    """Return a measure's name or sentence with the settings in place."""
    return text.format(**settings, adaptive=10 * settings["rho"])


def spread(runs: list[Diagnosed], measure: Measure) -> Spread | None:
    """Return mean and deviation of a measure over runs; None if none has it."""
    values = [v for run in runs if (v := measure.of(run)) is not None]
    return Spread(*mean_std(values), len(values)) if values else None
