"""How far a classifier's probabilities can be believed: negative log-likelihood, Brier score, ECE, margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steppe.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """What a classifier's probabilities are worth on N samples.

    Attributes:
        accuracy: Share of samples whose largest probability is at their class.
        nll: Mean negative log-likelihood of the classes, in nats.
        brier: Mean of sum_c (p_c - [c = y])^2, from 0 to 2 (Brier, Monthly Weather Review 78, 1950).
        ece: Expected calibration error: sum over bins of confidence of n_b / N |accuracy_b - confidence_b|
            (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017). It depends on the bins and is
            biased upwards for few samples.
        confidence: Mean largest probability; above the accuracy, the classifier is overconfident.
        bins: Per bin (count, mean confidence, accuracy), the latter two not a number where it is empty.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    confidence: float
    bins: list[tuple[int, float, float]]


def calibration(logits: Tensor, y: Tensor, bins: int = 15) -> Calibration:
    """Return the calibration of logits (N, classes) for the classes y (N,), in double precision.

    ``bins`` equally wide ones of confidence, each open below and closed above.

    Raises InputError for other shapes, no samples, or ``bins`` below 1.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; give at least 1")
    z, y = _checked(logits, y)
    log_p = torch.log_softmax(z, 1)
    p = log_p.exp()
    picked = torch.arange(len(y))
    confidence, guess = p.max(1)
    hit = (guess == y).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    found, ece = [], 0.0
    for b in range(bins):
        inside = index == b
        count = int(inside.sum())
        mean, right = (float(t[inside].mean()) if count else float("nan") for t in (confidence, hit))
        ece += count / len(y) * abs(right - mean) if count else 0.0
        found.append((count, mean, right))
    wanted = torch.zeros_like(p)
    wanted[picked, y] = 1
    return Calibration(
        accuracy=float(hit.mean()),
        nll=float(-log_p[picked, y].mean()),
        brier=float(((p - wanted) ** 2).sum(1).mean()),
        ece=ece,
        confidence=float(confidence.mean()),
        bins=found,
    )


def margins(logits: Tensor, y: Tensor, *, of: str = "logits") -> np.ndarray:
    """Return each sample's margin (N,): its class's value minus the highest of the others; negative where wrong.

    ``of`` is 'logits' or 'probabilities'.

    Raises InputError for other shapes, no samples, fewer than two classes, or another ``of``.
    """
    if of not in ("logits", "probabilities"):
        raise InputError(f"of is {of!r}; choose logits or probabilities")
    z, y = _checked(logits, y)
    if z.shape[1] < 2:
        raise InputError("a margin needs at least 2 classes; the logits have 1")
    values = z if of == "logits" else z.softmax(1)
    picked = torch.arange(len(y))
    own = values[picked, y]
    others = values.clone()
    others[picked, y] = -torch.inf
    found: np.ndarray = (own - others.max(1).values).numpy()
    return found


def _checked(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 2 or y.shape != logits.shape[:1] or not len(y):
        raise InputError(f"logits are {tuple(logits.shape)} and y {tuple(y.shape)}; give (N, classes) and (N,)")
    return logits.detach().double().cpu(), y.cpu().long()
