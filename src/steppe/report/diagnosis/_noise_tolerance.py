"""The table of tolerated noise, norms and bounds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from steppe.report import formatting
from steppe.report.diagnosis.conclusions import cell, digits
from steppe.report.diagnosis.summary import DiagnosisRow, Measure, at, over_runs, rank_correlation
from steppe.report.formatting import plain_text
from steppe.report.statistics import mean_std

BOUNDS = {"mcallester": "McAllester", "seeger": "Seeger", "catoni": "Catoni"}
VACUOUS = "vacuous"

# name of each measure and its place in the diagnosis: a sentence about it
_ABOUT = {
    ("Tolerated noise", "isotropic", "sigma"): "Largest standard deviation of noise on every weight that raises "
    "the training error by at most a tenth.",
    ("Tolerated relative noise", "magnitude", "sigma"): "The same with noise in proportion to each weight.",
    ("From the start, nats", "isotropic", "start"): "Squared distance from the initial weights over 4 times the "
    "variance of the tolerated noise, plus constants (Jiang et al.).",
    ("Relative, nats", "magnitude", "start"): "The same in coordinates that are scaled by the weights (Jiang et "
    "al., magnitude-aware).",
    ("Distance", "norms", "distance"): "L2 distance from the initial weights.",
    ("Margin", "norms", "margin"): "10th percentile over images of the right logit minus the highest other.",
    ("Spectral, ln", "norms", "spectral"): "Logarithm of the product of all layers' largest singular values.",
    ("Neyshabur, ln", "norms", "neyshabur"): "Logarithm of 2 to the depth times the product of Frobenius norms "
    "over margin and the root of the number of images; Golowich's is lower by the same amount for all networks of "
    "one depth. None where the margin is below 0.",
    ("Bartlett, ln", "norms", "bartlett"): "Logarithm of the spectral product times the layers' distances from "
    "their start, over margin and the root of the number of images. None where the margin is below 0.",
}
MEASURES = tuple(Measure(name, about, at("complexity", *path)) for (name, *path), about in _ABOUT.items())


def complexity(rows: Sequence[DiagnosisRow]) -> dict[str, Any]:
    """Return the table: heads, a row of cells per method, rank correlations, and a sentence about each column."""
    rows = [replace(row, values=row.values | {m.name: over_runs(row.runs, m) for m in MEASURES}) for row in rows]
    bounds = [kind for kind in BOUNDS if all(_bounds(row, kind) for row in rows)]
    return {
        "heads": [m.name for m in MEASURES] + [f"{BOUNDS[kind]}, %" for kind in bounds],
        "rows": [
            (
                plain_text(row.method),
                [cell(m, row.values[m.name]) for m in MEASURES] + [bound_cell(row, kind) for kind in bounds],
            )
            for row in rows
        ],
        "taus": [rank_correlation(rows, m) for m in MEASURES] + [None] * len(bounds),
        "about": [(m.name, m.about) for m in MEASURES],
        "bounds": [BOUNDS[kind] for kind in bounds],
    }


def _bounds(row: DiagnosisRow, kind: str) -> list[float]:
    """Return this bound of every run that has one, in percent."""
    return [
        100 * bound["value"]
        for run in row.runs
        for bound in run.diagnosis["complexity"].get("bounds", ())
        if bound["kind"] == kind
    ]


def bound_cell(row: DiagnosisRow, kind: str) -> tuple[str, str]:
    """Return a method's bound and its deviation as text; vacuous ones are only counted."""
    values = _bounds(row, kind)
    valid = [v for v in values if v < 100]
    if not valid:
        return VACUOUS, ""
    mean, std = mean_std(valid)
    notes = [] if std is None else [f"± {digits(std, 2)}"]
    notes += [f"{len(values) - len(valid)} of {len(values)} {VACUOUS}"] if len(valid) < len(values) else []
    return formatting.number(mean, 1), ", ".join(notes)
