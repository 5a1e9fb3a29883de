"""What a run minimises and what it reports: its loss, its metric, and what a batch counts in means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from steppe.config import parse_spec, user_code
from steppe.core.user_loss import calls_model
from steppe.errors import InputError
from steppe.tasks import losses, meters
from steppe.tasks.losses import IGNORED, NUMBERS
from steppe.tasks.meters import Meter
from steppe.tasks.metric import ACCURACY, Metric


@dataclass(frozen=True)
class Objective:
    """The objective of a run on its data.

    Attributes:
        task: What is learned, as in `steppe.data.DataSet`.
        loss: Training loss of output and target, or 'model' if the network returns its own, or a ModelLoss.
        metric: What is reported.
        new_meter: Makes the metric's meter; None if the metric is the loss.
        weigh: What a batch counts in means: its samples, or its targets that are not ignored.
        outputs: What the outputs are for methods that compare them, as in `Method.bind`; None if the loss says it.
        counts_hits: Whether loss and metric are cross-entropy and accuracy of classes, which are only counted.
    """

    task: str = "classification"
    loss: Any = F.cross_entropy
    metric: Metric = ACCURACY
    new_meter: Callable[[], Meter] | None = None
    weigh: Callable[[Any], float] = len
    outputs: str | None = "classes"
    counts_hits: bool = True

    @property
    def key(self) -> str:
        """The metric's key in records: 'accuracy', or 'metric' for any other."""
        return "accuracy" if self.metric == ACCURACY else "metric"


def make(
    task: str, loss: str, metric: str, *, outputs: int, unit: str, y: Tensor | None, smoothing: float
) -> Objective:
    """Return the objective of a run.

    Args:
        task: The task of the data.
        loss: Name of the loss, empty for the task's.
        metric: Name of the metric, empty for the task's; of a loss 'model' without targets, the loss.
        outputs: Number of outputs.
        unit: Unit of the target.
        y: The training targets, None if the data have none.
        smoothing: Label smoothing.

    Raises InputError for names that are unknown or do not fit the task.
    """
    own = user_code.get("loss", loss) if user_code.is_registered("loss", loss) else loss
    if y is None and not (loss == "" or calls_model(own)):
        raise InputError(
            f"loss is {loss!r} and the data have no targets; give targets, loss 'model' or a ModelLoss"
        )
    loss = loss or ("model" if y is None else losses.default(task))
    form = None if y is None else losses.form_of(loss, task)
    # with a binary cross-entropy the outputs of numbers 0 and 1 are logits of two classes; with a loss of numbers
    # whole numbers are numbers
    two = form == "labels" and (task in NUMBERS or (task == "classification" and outputs == 2))
    of_metric = "classification" if two else task
    if not metric:
        numbers = task == "classification" and form == "numbers"
        metric = "loss" if y is None else meters.default("regression" if numbers else of_metric)
    if task in NUMBERS and y is not None:
        if metric in meters.OF_CLASSES and not ((y == 0) | (y == 1)).all():
            raise InputError(f"metric is {metric!r}, of classes, and the task is {task}; choose rmse, mae or r2")
        if loss.startswith("cross-entropy") and y[0].numel() == 1 and (y % 1).any():
            raise InputError(f"loss is {loss!r}, of classes, and the task is {task}; choose mse, mae or huber")
    elif metric in meters.OF_NUMBERS and loss.startswith("cross-entropy") and not _is_soft(y):
        raise InputError(
            f"metric is {metric!r}, of numbers, and the task is {task}; choose {meters.default(task)}, or give "
            "task='regression'"
        )
    two = two and metric not in meters.OF_NUMBERS
    chosen, new_meter = meters.make(metric, of_metric if two else task, 1 if two else outputs, unit)
    plain = loss == "cross-entropy" and chosen == ACCURACY and task == "classification"
    counts_hits = plain and y is not None and y.ndim == 1
    weigh: Callable[[Any], float] = len
    if y is not None and not y.is_floating_point() and y.ndim > 1 and bool((y == IGNORED).any()):
        weigh = count_targets
    function = _loss(loss, task, outputs, y, smoothing)
    return Objective(task, function, chosen, new_meter, weigh, form, counts_hits)


def _loss(text: str, task: str, outputs: int, y: Tensor | None, smoothing: float) -> Any:
    if text == "model":
        return text
    if user_code.reference_in(text) or user_code.is_registered("loss", text):
        value = user_code.get("loss", text)
        if isinstance(value, type):
            value = value()
        if not (callable(value) or calls_model(value)):
            raise InputError(f"loss {text} is {type(value).__name__}; give a function of output and target")
        return value
    name, settings = parse_spec(text, "loss")
    return losses.make(name, settings, task, outputs, y, smoothing)


def _is_soft(y: Tensor | None) -> bool:
    return y is not None and y.is_floating_point()


def count_targets(batch: Any) -> float:
    """Return how many targets of a batch are not ignored: the tokens that its mean loss is over."""
    return float((batch.y != IGNORED).sum())
