"""The planes of a diagnosis as surfaces that a reader can turn: what the page's script draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe.report.diagnosis.summary import DiagnosisRow
from steppe.report.formatting import plain_text
from steppe.report.plotting import number


def surfaces(rows: Sequence[DiagnosisRow]) -> dict[str, Any]:
    """Return the loss on the plane of each method's first seed, and the scale that all are drawn to."""
    low, high = limits(rows)
    return {
        "scale": {"low": low, "high": high},
        "surfaces": [
            {
                "at": row.runs[0].found["plane"]["at"],
                "loss": [[_short(v) for v in line] for line in row.runs[0].found["plane"]["loss"]],
            }
            for row in rows
        ],
    }


def names(rows: Sequence[DiagnosisRow]) -> list[str]:
    """Return what each surface is of."""
    return [plain_text(f"{row.method}, seed {row.runs[0].record.seed}") for row in rows]


def limits(rows: Sequence[DiagnosisRow]) -> tuple[float, float]:
    """Return the lowest loss on any method's plane and the 90th percentile of all, where the scale ends."""
    every = np.array([number(v) for row in rows for line in row.runs[0].found["plane"]["loss"] for v in line])
    every = every[np.isfinite(every)]
    low, high = float(every.min()), float(np.quantile(every, 0.9))
    return low, high if high > low else low + 1


def scale_said(rows: Sequence[DiagnosisRow]) -> str:
    """Return the scale in words."""
    low, high = limits(rows)
    return f"{low:.3g} to {high:.3g}; what is above is cut off"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
