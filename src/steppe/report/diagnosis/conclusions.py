"""The result of a diagnosis in sentences and numbers.

"Significant" means that a 95 % interval excludes 0, or that p is at most 0.05.
"""

import math
from typing import Any

from steppe.report import formatting
from steppe.report.comparison.conclusions import compared, tied
from steppe.report.comparison.summary import Spread
from steppe.report.diagnosis.summary import (
    CORRUPTED,
    SHARPNESS,
    DiagnosisRow,
    Measure,
    RankCorrelation,
    differences_to_plain,
    rank_correlation,
    with_settings,
)
from steppe.report.diagnosis.wording import WORDING, Wording
from steppe.report.formatting import listed, plain_text
from steppe.report.statistics import Difference, holm

COMPARED = (*SHARPNESS, CORRUPTED)
"""The measures in which methods are compared with plain."""


def sentences(rows: list[DiagnosisRow]) -> str:
    """Return which methods differ from plain, and which measures of sharpness correlate with the test metric."""
    return " ".join(filter(None, (_compared_with_plain(rows), _correlations(rows))))


def _compared_with_plain(rows: list[DiagnosisRow]) -> str:
    """Return which methods differ significantly from plain, by every measure of the table of differences."""
    measures: dict[tuple[bool, str], list[str]] = {}
    p: list[float] = []
    for measure in COMPARED:
        differences = {m: d for m, d in differences_to_plain(rows, measure).items() if d.p is not None}
        p += [d.p for d in differences.values() if d.p is not None]
        if differences:
            name = with_settings(measure.name, rows[0]).removesuffix(", %")
            measures.setdefault((measure is CORRUPTED, compared(differences)), []).append(name)
    if not p:
        return ""
    others = [name for (_, text), names in measures.items() if not text for name in names]
    texts = [f"In {listed(names)}, {text}." for (_, text), names in measures.items() if text]
    if not texts:
        return f"No method differs significantly from plain in any of {len(others)} measures."
    which = "measure" if len(others) == 1 else f"{len(others)} measures"
    texts += [f"In the other {which} no method differs significantly from plain."] if others else []
    left = sum(value <= 0.05 for value in holm(p))
    adjusted = f"With Holm's adjustment over these {len(p)} differences, {left or 'none'}"
    return " ".join([*texts, *([f"{adjusted} {'are' if left > 1 else 'is'} significant."] if len(p) > 1 else [])])


def _correlations(rows: list[DiagnosisRow]) -> str:
    """Return which measures are significantly rank-correlated with the test metric."""
    text = rows[0].wording.text
    results = [(m, t) for m in SHARPNESS if (t := rank_correlation(rows, m))]
    if not results:
        return f"A rank correlation needs at least three methods of different {text.name}."
    methods = results[0][1].n
    significant = [(m, t) for m, t in results if t.p <= 0.05]
    if not significant:
        # Of n methods the smallest p is 2 / n!, which is above 0.05 up to n = 4.
        note = f"{methods} methods are too few to tell" if methods < 5 else f"{methods} methods"
        return (
            f"None of the {len(results)} sharpness measures is significantly rank-correlated with test "
            f"{text.name} ({note})."
        )
    better = "more accurate" if text.is_accuracy else "better"
    texts = [
        f"{with_settings(m.name, rows[0])} ({'flatter' if text.gain(t.tau) < 0 else 'sharper'} is {better}, "
        f"tau {t.tau:+.2f}, p {t.p:.2g})"
        for m, t in significant
    ]
    are = "is" if len(significant) == 1 else "are"
    return (
        f"Over {methods} methods, {len(significant)} of {len(results)} sharpness measures {are} significantly "
        f"rank-correlated with test {text.name}: {'; '.join(texts)}."
    )


def differences(rows: list[DiagnosisRow]) -> dict[str, Any] | None:
    """Return a table of differences to plain training; None without plain."""
    corrupted = any(CORRUPTED.of(run) is not None for row in rows for run in row.runs)
    measures = COMPARED if corrupted else SHARPNESS
    by_column = [differences_to_plain(rows, measure) for measure in measures]
    if not any(by_column):
        return None
    return {
        "heads": [with_settings(m.name, rows[0]) for m in measures],
        "corrupted": corrupted,
        "intervals": any(d.low is not None for column in by_column for d in column.values()),
        "rows": [
            (plain_text(row.method), [_difference(column.get(row.method)) for column in by_column])
            for row in rows
            if any(row.method in column for column in by_column)
        ],
    }


def _difference(value: Difference | None) -> dict[str, Any] | None:
    if value is None:
        return None
    ends = [] if value.low is None or value.high is None else [digits(value.low, 2), digits(value.high, 2)]
    return {
        "mean": formatting.minus(digits(value.mean, 2, sign=True)),
        "interval": formatting.minus(f"[{', '.join(ends)}]") if ends else "",
        "strong": value.significant,
    }


def about_trajectories(content: dict[str, Any], wording: Wording = WORDING) -> str:
    """Return the caption of the trajectories."""
    distances = [r for track in content["tracks"] for r in track["residuals"]]
    lowest = tied(content["tracks"], lambda track: -_finite(track["own"][-1]))
    text = (
        f"The weights of seed {content['seed']}'s runs during training, on the plane of the "
        "first two principal components of all saved weights: one dot per saved epoch, the last one large. The "
        "loss is that of the weights on the plane, with BatchNorm statistics estimated anew on "
        f"{content['extent']['statistics']} training {wording.samples}. The saved weights are "
        f"{min(distances):.2g} to {max(distances):.2g} away from the plane, so the shade under a dot is not its "
        f"loss. With its own weights and statistics, {listed([plain_text(track['name']) for track in lowest])} "
        f"{'ends' if len(lowest) == 1 else 'end'} lowest, at {_finite(lowest[0]['own'][-1]):.3g}{wording.after}."
    )
    names = [plain_text(t["name"]) for t in content["tracks"] if t["name"] != t["method"]]
    text += (
        f" Further networks of one run, each from its own start, drawn like its first: {', '.join(names)}."
        if names
        else ""
    )
    others = [plain_text(name) for name in content["elsewhere"]]
    return text + (f" Not drawn, since they have another architecture: {', '.join(others)}." if others else "")


def about_endpoints(content: dict[str, Any], wording: Wording = WORDING) -> str:
    """Return the caption of the runs' endpoints."""
    start, *ends = content["residuals"]
    barriers = {name: _finite(path["barrier"]) for name, path in content["paths"].items()}
    highest = tied(list(barriers), lambda name: barriers[name])
    on = "is on the line" if len(highest) == 1 else "is on the lines"
    return (
        f"Where the runs of seed {content['seed']} ended, on the plane of the first two principal components of "
        "their start and ends, and the loss along straight lines from one end to the others. The start is "
        f"{start:.2g} away from the plane and the ends are {min(ends):.2g} to {max(ends):.2g} away, so the shade "
        "under an end is not its loss. BatchNorm statistics are estimated anew at every point on "
        f"{content['extent']['statistics']} training {wording.samples}; the losses of the table are with each "
        f"network's own. The highest barrier, {barriers[highest[0]]:.2g}{wording.after}, {on} to "
        f"{listed(list(map(plain_text, highest)))}."
    )


def _finite(value: float | None) -> float:
    """Return a loss read from JSON, where null stands for one that was not finite."""
    return math.inf if value is None else value


def cell(measure: Measure, value: Spread | None) -> tuple[str, str]:
    """Return the mean and the standard deviation as text."""
    if value is None:
        return formatting.NONE, ""
    places = measure.decimals
    mean = digits(value.mean, 3) if places is None else f"{value.mean:,.{places}f}"
    if not value.std:
        return formatting.minus(mean), ""
    std = digits(value.std, 2) if places is None else f"{value.std:.{places}f}"
    return formatting.minus(mean), f"± {std}"


def digits(value: float, count: int, *, sign: bool = False) -> str:
    """Return a number to ``count`` significant digits, with an exponent only if it is very small or large."""
    if value and not 1e-5 < abs(value) < 1e7:
        return f"{value:{'+' if sign else ''}.{count - 1}e}"
    size = math.floor(math.log10(abs(value))) if value else 0
    rounded = round(value, count - 1 - size)
    return f"{rounded:{'+' if sign else ''}.{max(0, count - 1 - size)}f}"


def tau(value: RankCorrelation | None) -> str:
    """Return a rank correlation and its p-value as text; "" for None."""
    return "" if value is None else formatting.minus(f"tau {value.tau:+.2f}, p {value.p:.2g}")
