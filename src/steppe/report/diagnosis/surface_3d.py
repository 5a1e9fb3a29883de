"""The planes of a diagnosis as surfaces that a reader can turn: what the page's script draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe.report.diagnosis.summary import DiagnosisRow
from steppe.report.plotting import numbers


def surfaces(rows: Sequence[DiagnosisRow]) -> dict[str, Any]:
    """Return the loss on the plane of each method's first seed, and the scale of all."""
    low, high = limits(rows)
    planes = [row.runs[0].diagnosis["plane"] for row in rows]
    return {
        "scale": {"low": low, "high": high},
        "surfaces": [
            {
                "at": plane["at"],
                "loss": [[None if v is None else float(f"{v:.5g}") for v in line] for line in plane["loss"]],
            }
            for plane in planes
        ],
    }


def limits(rows: Sequence[DiagnosisRow]) -> tuple[float, float]:
    """Return the lowest loss on any method's plane and the 90th percentile of all, where the scale ends."""
    losses = np.concatenate([numbers(row.runs[0].diagnosis["plane"]["loss"]).ravel() for row in rows])
    losses = losses[np.isfinite(losses)]
    low, high = float(losses.min()), float(np.quantile(losses, 0.9))
    return low, high if high > low else low + 1
