"""Calibration of a classifier's probabilities: negative log-likelihood, Brier score, ECE, margins."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steppe.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """How well a classifier's probabilities fit N samples.

    Attributes:
        accuracy: Share of samples whose most probable class is theirs.
        nll: Mean negative log-likelihood of the classes, in nats.
        brier: Mean of sum_c (p_c - [c = y])^2, from 0 to 2 (Brier, Monthly Weather Review 78, 1950).
        ece: Expected calibration error: sum over bins of confidence of n_b / N |accuracy_b - confidence_b|
            (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017). It depends on the bins and is
            biased upwards for few samples.
        confidence: Mean largest probability; above the accuracy, the classifier is overconfident.
        bins: (count, mean confidence, accuracy) of each bin; the latter two are NaN for an empty bin.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    confidence: float
    bins: list[tuple[int, float, float]]


def calibration(logits: Tensor, y: Tensor, bins: int = 15) -> Calibration:
    """Return the calibration of logits (N, classes) for the classes y (N,), in double precision.

    Confidence is divided into ``bins`` of equal width, each open below and closed above.

    Raises InputError for other shapes or classes, no samples, or ``bins`` below 1.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; give at least 1")
    z, y = _checked(logits, y)
    log_p = torch.log_softmax(z, 1)
    p = log_p.exp()
    rows = torch.arange(len(y))
    confidence, prediction = p.max(1)
    correct = (prediction == y).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    per_bin, ece = [], 0.0
    for b in range(bins):
        inside = index == b
        count = int(inside.sum())
        mean, accuracy = (float(t[inside].mean()) if count else float("nan") for t in (confidence, correct))
        ece += count / len(y) * abs(accuracy - mean) if count else 0.0
        per_bin.append((count, mean, accuracy))
    one_hot = torch.zeros_like(p)
    one_hot[rows, y] = 1
    return Calibration(
        accuracy=float(correct.mean()),
        nll=float(-log_p[rows, y].mean()),
        brier=float(((p - one_hot) ** 2).sum(1).mean()),
        ece=ece,
        confidence=float(confidence.mean()),
        bins=per_bin,
    )


def margins(logits: Tensor, y: Tensor, *, of: str = "logits") -> np.ndarray:
    """Return each sample's margin (N,): the value of its class minus the largest other one, negative if wrong.

    ``of`` is 'logits' or 'probabilities'.

    Raises InputError for other shapes or classes, no samples, fewer than two classes, or another ``of``.
    """
    if of not in ("logits", "probabilities"):
        raise InputError(f"of is {of!r}; choose logits or probabilities")
    z, y = _checked(logits, y)
    if z.shape[1] < 2:
        raise InputError("a margin needs at least 2 classes; the logits have 1")
    values = z if of == "logits" else z.softmax(1)
    rows = torch.arange(len(y))
    others = values.clone()
    others[rows, y] = -torch.inf
    return (values[rows, y] - others.max(1).values).numpy()


def _checked(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 2 or y.shape != logits.shape[:1] or not len(y):
        raise InputError(f"logits are {tuple(logits.shape)} and y {tuple(y.shape)}; give (N, classes) and (N,)")
    y = y.cpu().long()
    if not ((y >= 0) & (y < logits.shape[1])).all():
        wrong = int(y[(y < 0) | (y >= logits.shape[1])][0])
        raise InputError(f"y has {wrong}; give classes from 0 to {logits.shape[1] - 1}, without ignored samples")
    return logits.detach().double().cpu(), y
