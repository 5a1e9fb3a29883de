"""Training losses by name, for outputs and targets of any shape; each is a mean over samples or tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.errors import InputError, unknown

IGNORED = -100  # the target that no loss or metric counts, as in torch.nn.functional.cross_entropy
TOKENS = ("language modelling", "token classification")
NUMBERS = ("regression", "ordinal")


def classes_second(output: Tensor, y: Tensor) -> Tensor:
    """Return logits (B, ..., C) of targets (B, ...) as (B, C, ...); those that are (B, C, ...) as they are."""
    if output.ndim == y.ndim + 1 and output.ndim > 2 and output.shape[1:-1] == y.shape[1:]:
        return output.movedim(-1, 1)
    return output


def like_target(output: Tensor, y: Tensor) -> Tensor:
    """Return outputs (B, 1) or (B,) in the shape of the targets; raises InputError if there are more or fewer."""
    if output.shape == y.shape:
        return output
    if output.numel() != y.numel():
        classes = output.ndim == 2 and output.shape[:1] == y.shape
        raise InputError(
            f"the network returns {tuple(output.shape)} and the targets are {tuple(y.shape)}; return one number "
            f"for each of the targets{', or choose cross-entropy, of classes' if classes else ''}"
        )
    return output.reshape(y.shape)


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    r"""Mean cross-entropy over samples or tokens, targets of -100 left out.

    With ``weight`` (C,) each term is multiplied by its class's weight; the divisor is the number of terms, so that
    the mean over parts of a batch is that of the batch. ``last``: logits are (B, ..., C).
    """

    smoothing: float = 0.0
    weight: Tensor | None = None
    last: bool = False

    def __call__(self, output: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss, or each term with reduction 'none'."""
        logits = classes_second(output, y) if self.last else output
        if self.weight is None:
            return F.cross_entropy(logits, y, label_smoothing=self.smoothing, reduction=reduction)
        weight = self.weight.to(logits)
        terms = F.cross_entropy(logits, y, weight, label_smoothing=self.smoothing, reduction="none")
        return terms if reduction == "none" else terms.sum() / (y != IGNORED).sum()


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy:
    """Mean binary cross-entropy of logits and targets 0 or 1 of equal size; ``weight`` multiplies the ones."""

    weight: Tensor | None = None

    def __call__(self, output: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss, or each term with reduction 'none'."""
        weight = None if self.weight is None else self.weight.to(output)
        y = y.to(output.dtype)
        return F.binary_cross_entropy_with_logits(
            like_target(output, y), y, pos_weight=weight, reduction=reduction
        )


_DISTANCES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}


@dataclass(frozen=True)
class Regression:
    """Mean of a distance between outputs and targets: mse, mae or huber."""

    kind: str

    def __call__(self, output: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss, or each term with reduction 'none'."""
        return _DISTANCES[self.kind](like_target(output, y), y.to(output.dtype), reduction=reduction)


NAMES = ("cross-entropy", "bce", "mse", "mae", "huber", "model")


def default(task: str) -> str:
    """Return the name of a task's loss."""
    return "bce" if task == "multi-label" else "mse" if task in NUMBERS else "cross-entropy"


def form_of(loss: str, task: str) -> str:
    """Return what outputs are under a loss of this name, or else in a task, as `bind`'s ``outputs`` names it."""
    forms = {"cross-entropy": "classes", "bce": "labels", **dict.fromkeys(_DISTANCES, "numbers")}
    of_task = "labels" if task == "multi-label" else "numbers" if task in NUMBERS else "classes"
    return forms.get(loss.partition(":")[0], of_task)


def make(name: str, settings: dict[str, Any], task: str, outputs: int, y: Tensor | None, smoothing: float) -> Any:
    """Return the loss of this name.

    Args:
        name: One of `NAMES` except 'model'.
        settings: ``weight``: 'balanced' weighs classes by the inverse of their frequency.
        task: The task, which says where the classes of an output are.
        outputs: Number of outputs.
        y: The training targets, from which weights are computed.
        smoothing: Label smoothing of the cross-entropy.

    Raises InputError for an unknown name or setting, and for weights without classes.
    """
    if name not in NAMES:
        raise unknown("loss", name, NAMES, hint="or module:function")
    weight = settings.pop("weight", None)
    if settings:
        raise unknown(f"setting of loss {name}", next(iter(settings)), ("weight",))
    if weight and name not in ("cross-entropy", "bce"):
        raise InputError(f"loss {name} has weight={weight}, which only cross-entropy and bce have; leave it out")
    if weight not in (None, "balanced"):
        raise InputError(f"loss {name} has weight={weight}; give weight=balanced")
    if name in ("mse", "mae", "huber"):
        return Regression(name)
    weights = _balanced(name, outputs, y) if weight else None
    if name == "bce":
        return BinaryCrossEntropy(weights)
    if weights is None and task not in TOKENS:
        return partial(F.cross_entropy, label_smoothing=smoothing) if smoothing else F.cross_entropy
    return CrossEntropy(smoothing, weights, last=task in TOKENS)


def _balanced(name: str, outputs: int, y: Tensor | None) -> Tensor:
    """Return N / (C n_c) of each class c, or of each label the number of zeros over that of ones."""
    if y is None:
        raise InputError("loss has weight=balanced and the data have no targets to count; leave it out")
    if name == "bce":
        ones = (y > 0).double().reshape(len(y), -1).sum(0)
        return ((len(y) - ones) / ones.clamp(min=1)).clamp(min=1e-3).float()
    if y.is_floating_point():
        raise InputError("loss has weight=balanced and the targets are no classes; leave it out")
    counts = torch.bincount(y[y != IGNORED].reshape(-1), minlength=outputs).double()
    return (counts.sum() / (outputs * counts.clamp(min=1))).float()
