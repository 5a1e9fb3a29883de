"""The planes of a diagnosis as surfaces that a reader can turn: what the page's script draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe.report import plotting
from steppe.report.diagnosis.summary import DiagnosisRow


def surfaces(rows: Sequence[DiagnosisRow]) -> dict[str, Any]:
    """Return the loss on the plane of each method's first seed, and the scale of all."""

    def rounded(losses: list[list[float | None]]) -> list[list[float | None]]:
        return [[None if v is None else float(f"{v:.5g}") for v in line] for line in losses]

    low, *_, high = levels(rows)
    planes = [row.runs[0].diagnosis["plane"] for row in rows]
    surfaces = [{"at": plane["at"], "loss": rounded(plane["loss"])} for plane in planes]
    return {"scale": {"low": low, "high": high}, "surfaces": surfaces}


def levels(rows: Sequence[DiagnosisRow]) -> np.ndarray:
    """Return the levels of colour that all methods' planes have in common."""
    losses = [plotting.numbers(row.runs[0].diagnosis["plane"]["loss"]).ravel() for row in rows]
    return plotting.levels(np.concatenate(losses))
