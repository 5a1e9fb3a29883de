"""The table of noise that is borne, of norms and of bounds: what is in it, and what it does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steppe.report import formatting
from steppe.report.diagnosis.conclusions import cell, digits
from steppe.report.diagnosis.summary import Diagnosed, DiagnosisRow, Measure, agreement, spread
from steppe.report.formatting import plain_text
from steppe.report.statistics import mean_std

CAUTION = (
    "Measures that papers report in the place of a bound. None of them bounds anything here: BatchNorm, skips and "
    "pooling are outside what the theorems of Neyshabur, Golowich and Bartlett are about, and the others are "
    "conventions. Their sizes mean nothing; their order may."
)
BOUNDS = {"mcallester": "McAllester", "seeger": "Seeger", "catoni": "Catoni"}
VACUOUS = "vacuous"
ABOUT_BOUNDS = (
    "PAC-Bayes bound on the mean error of networks drawn around this one, at the best noise of a grid and with "
    "confidence 95 %; 'vacuous' is a bound of 100 % or more, which says nothing. Running statistics of BatchNorm "
    "are taken as fixed, though they come from the data."
)


def _part(run: Diagnosed, part: str, name: str) -> float | None:
    held = run.found["complexity"][part]
    value = None if held is None else held[name]
    return None if value is None else float(value)


def _measure(name: str, about: str, part: str, key: str) -> Measure:
    return Measure(name, about, lambda run: _part(run, part, key))


MEASURES = (
    _measure(
        "Noise borne",
        "Largest deviation of noise on every weight that changes the training error by a tenth at most.",
        "isotropic",
        "sigma",
    ),
    _measure(
        "Relative noise borne",
        "The same with noise in proportion to each weight.",
        "magnitude",
        "sigma",
    ),
    _measure(
        "From the start, nats",
        "Squared distance from the initial weights over 4 times the variance of the noise borne, and constants "
        "(Jiang et al.).",
        "isotropic",
        "start",
    ),
    _measure(
        "Relative, nats",
        "The same in coordinates that are scaled by the weights (Jiang et al., magnitude-aware).",
        "magnitude",
        "start",
    ),
    _measure("Distance", "Length of the way from the initial weights, as the crow flies.", "norms", "distance"),
    _measure(
        "Margin", "10th percentile over images of the right logit minus the highest other.", "norms", "margin"
    ),
    _measure(
        "Spectral, ln", "Logarithm of the product of all layers' largest singular values.", "norms", "spectral"
    ),
    _measure(
        "Neyshabur, ln",
        "Logarithm of 2 to the depth times the product of Frobenius norms over margin and the root of the number "
        "of images; Golowich's is lower by the same for all networks of one depth. None where the margin is "
        "below 0.",
        "norms",
        "neyshabur",
    ),
    _measure(
        "Bartlett, ln",
        "Logarithm of the spectral product times the layers' distances from their start, over margin and the root "
        "of the number of images. None where the margin is below 0.",
        "norms",
        "bartlett",
    ),
)


def complexity(rows: Sequence[DiagnosisRow]) -> dict[str, Any]:
    """Return the table: heads, a row of cells per method, rank correlations, and what each column is."""
    named = [
        DiagnosisRow(row.method, row.runs, row.values | {m.name: spread(row.runs, m) for m in MEASURES})
        for row in rows
    ]
    bounds = [kind for kind in BOUNDS if all(_bounds(row, kind) for row in rows)]
    heads = [m.name for m in MEASURES] + [f"{BOUNDS[kind]}, %" for kind in bounds]
    about = [(m.name, m.about) for m in MEASURES]
    return {
        "caution": CAUTION,
        "samples": rows[0].runs[0].found["settings"]["trained"],
        "heads": heads,
        "rows": [
            (
                plain_text(row.method),
                [cell(m, row.values[m.name]) for m in MEASURES] + [bound_cell(row, kind) for kind in bounds],
            )
            for row in named
        ],
        "taus": [agreement(named, m) for m in MEASURES] + [None] * len(bounds),
        "about": about + ([(", ".join(BOUNDS[kind] for kind in bounds), ABOUT_BOUNDS)] if bounds else []),
        "bounds": bool(bounds),
    }


def _bounds(row: DiagnosisRow, kind: str) -> list[float]:
    """Return this bound of every run that has one, in percent."""
    return [
        100 * bound["value"]
        for run in row.runs
        for bound in run.found["complexity"].get("bounds", ())
        if bound["kind"] == kind
    ]


def bound_cell(row: DiagnosisRow, kind: str) -> tuple[str, str]:
    """Return a method's bound and its deviation as text; of vacuous ones only how many there are."""
    values = _bounds(row, kind)
    said = [v for v in values if v < 100]
    if not said:
        return VACUOUS, ""
    mean, std = mean_std(said)
    below = [] if std is None else [f"± {digits(std, 2)}"]
    below += [f"{len(values) - len(said)} of {len(values)} {VACUOUS}"] if len(said) < len(values) else []
    return formatting.number(mean, 1), ", ".join(below)
