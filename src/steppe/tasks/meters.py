"""Metrics by name: what is measured over a part of the data, batch by batch, on any number of processes."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steppe.config import user_code
from steppe.errors import InputError, unknown
from steppe.tasks.losses import IGNORED, NUMBERS, classes_second, like_target
from steppe.tasks.metric import ACCURACY, Metric

State = dict[str, Any]


class Meter(Protocol):
    """A metric while it is computed; ``state`` of several processes is merged by ``value``."""

    def update(self, output: Tensor, y: Any) -> None:
        """Add a batch."""

    def state(self) -> State:
        """Return what was added, as tensors of the CPU."""

    def value(self, states: Sequence[State]) -> float:
        """Return the metric over all that these states have."""


class MeanMeter:
    """A function of the mean of terms, of which each batch has a sum and a count."""

    def __init__(self, terms: Callable[[Tensor, Tensor], tuple[Tensor, Any]], final: Callable[[float], float]):
        self.terms, self.final = terms, final
        self.total: Any = 0.0
        self.count: Any = 0

    def update(self, output: Tensor, y: Tensor) -> None:
        """Add a batch."""
        total, count = self.terms(output, y)
        self.total, self.count = self.total + total.double(), self.count + count

    def state(self) -> State:
        """Return sum and count."""
        return {"total": float(self.total), "count": float(self.count)}

    def value(self, states: Sequence[State]) -> float:
        """Return the function of the mean over all states."""
        count = sum(s["count"] for s in states)
        return self.final(sum(s["total"] for s in states) / count if count else float("nan"))


class TorchMeter:
    """A torchmetrics object; the states of processes are merged as torchmetrics itself merges them."""

    def __init__(self, metric: Any, shape: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.metric, self.shape = copy.deepcopy(metric), shape
        self.metric.reset()
        self.metric.sync_on_compute = False

    def update(self, output: Tensor, y: Tensor) -> None:
        """Add a batch."""
        preds, target = self.shape(output, y)
        self.metric.to(output.device)
        self.metric.update(preds, target)

    def state(self) -> State:
        """Return the metric's state."""

        def to_cpu(value: Any) -> Any:
            return [v.cpu() for v in value] if isinstance(value, list) else value.cpu()

        return {name: to_cpu(value) for name, value in self.metric.metric_state.items()}

    def value(self, states: Sequence[State]) -> float:
        """Return the metric over all states."""
        merged = self.metric
        if len(states) > 1:
            merged = copy.deepcopy(self.metric).cpu()
            for name, reduce in merged._reductions.items():
                values = [s[name] for s in states]
                lists = isinstance(values[0], list)
                joined = [v for part in values for v in part] if lists else torch.stack(values)
                setattr(merged, name, reduce(joined) if reduce is not None and len(joined) else joined)
        merged._update_count, merged._computed = max(1, merged._update_count), None
        result = merged.compute()
        if not isinstance(result, Tensor) or result.numel() != 1:
            raise InputError(
                f"metric {type(merged).__name__} returns {type(result).__name__} of several values; give one with "
                "a single value, such as average='macro'"
            )
        return float(result)


class FunctionMeter:
    """A function of all outputs and targets of a part of the data."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        self.function = function
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, output: Tensor, y: Tensor) -> None:
        """Add a batch."""
        self.outputs.append(output.detach().cpu())
        self.targets.append(y.detach().cpu())

    def state(self) -> State:
        """Return all outputs and targets."""
        return {"outputs": self.outputs, "targets": self.targets}

    def value(self, states: Sequence[State]) -> float:
        """Return the function's value on all of them."""
        outputs, targets = (torch.cat([t for s in states for t in s[k]]) for k in ("outputs", "targets"))
        return float(self.function(outputs, targets))


def kappa_of_ranks(output: Tensor, y: Tensor) -> float:
    """Return Cohen's kappa with quadratic weights of whole ranks ``y`` (N,) and outputs (N, 1) or (N,).

    Outputs are rounded, within the range of y. With p the outputs and q the ranks it is
    1 - mean (p - q)^2 / (var p + var q + (mean p - mean q)^2); nan if all ranks are equal.
    """
    rank = y.double().round()
    p = like_target(output, y).double().round().clamp(rank.min(), rank.max())
    chance = p.var(correction=0) + rank.var(correction=0) + (p.mean() - rank.mean()) ** 2
    return float(1 - (p - rank).square().mean() / chance)


def _squares(output: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return (like_target(output, y).double() - y.double()).square().sum(), y.numel()


def _distances(output: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return (like_target(output, y).double() - y.double()).abs().sum(), y.numel()


def _hits(output: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    if output.numel() == y.numel():  # a single logit for two classes
        hits: Tensor = (output.reshape(y.shape) > 0) == (y > 0)
        return hits.sum(), y.numel()
    if y.is_floating_point() and y.shape == output.shape:
        y = y.argmax(1)
    counted = y != IGNORED
    return ((classes_second(output, y).argmax(1) == y) & counted).sum(), counted.sum()


def _hits_of_five(output: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    logits = classes_second(output, y)
    if y.is_floating_point() and y.shape == output.shape:
        y = y.argmax(1)
    counted, best = y != IGNORED, logits.topk(min(5, logits.shape[1]), dim=1).indices
    return ((best == y.unsqueeze(1)).any(1) & counted).sum(), counted.sum()


def _nats(output: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    logits = classes_second(output, y)
    return torch.nn.functional.cross_entropy(logits, y, reduction="sum"), (y != IGNORED).sum()


def _exp(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).exp())


_MEANS: dict[str, tuple[Metric, Any, Callable[[float], float]]] = {
    "accuracy": (ACCURACY, _hits, float),
    "top-5": (Metric("top-5 accuracy"), _hits_of_five, float),
    "token-accuracy": (Metric("token accuracy"), _hits, float),
    "rmse": (Metric("RMSE", higher=False, percent=False), _squares, lambda v: v**0.5),
    "mse": (Metric("mean squared error", higher=False, percent=False), _squares, float),
    "mae": (Metric("mean absolute error", higher=False, percent=False), _distances, float),
    "perplexity": (Metric("perplexity", higher=False, percent=False), _nats, _exp),
}
# of torchmetrics: for classes, and for labels
_CLASSES: dict[str, tuple[Metric, str, dict[str, Any]]] = {
    "macro-f1": (Metric("macro F1"), "F1Score", {"average": "macro"}),
    "balanced-accuracy": (Metric("balanced accuracy"), "Accuracy", {"average": "macro"}),
    "auroc": (Metric("AUROC", percent=False), "AUROC", {}),
    "average-precision": (Metric("average precision", percent=False), "AveragePrecision", {}),
    "mean-iou": (Metric("mean IoU"), "JaccardIndex", {"average": "macro"}),
    "kappa": (Metric("quadratic kappa", percent=False), "CohenKappa", {"weights": "quadratic"}),
}
_NUMBERS: dict[str, tuple[Metric, str, dict[str, Any]]] = {
    "r2": (Metric("R2", percent=False), "R2Score", {}),
    "spearman": (Metric("Spearman correlation", percent=False), "SpearmanCorrCoef", {}),
    "pearson": (Metric("Pearson correlation", percent=False), "PearsonCorrCoef", {}),
}
_LOSS = Metric("loss", higher=False, percent=False)
OF_CLASSES = ("accuracy", "top-5", "token-accuracy", "perplexity")
OF_NUMBERS = ("rmse", "mse", "mae", *_NUMBERS)
NAMES = (*_MEANS, *_CLASSES, *_NUMBERS, "loss")
_DEFAULT = {
    "multi-label": "macro-f1",
    "ordinal": "rmse",
    "regression": "rmse",
    "segmentation": "mean-iou",
    "language modelling": "perplexity",
    "token classification": "token-accuracy",
}
_DIRECTIONS = {"higher": True, "lower": False}


def default(task: str) -> str:
    """Return the name of a task's metric."""
    return _DEFAULT.get(task, "accuracy")


def make(text: str, task: str, outputs: int, unit: str) -> tuple[Metric, Callable[[], Meter] | None]:
    """Return a metric and what makes its meter; None for the meter if the metric is the loss itself.

    Args:
        text: A name of `NAMES`, or ``module:name`` of code that the user gave, with ``:lower`` or ``:higher``.
        task: The task, which says how outputs and targets are compared.
        outputs: Number of classes, labels or outputs.
        unit: Unit of the target.

    Raises InputError for an unknown name, a task that the metric does not fit, and an unknown direction.
    """
    if text in _MEANS:
        metric, terms, final = _MEANS[text]
        metric = _with_unit(metric, unit) if text in ("rmse", "mae") else metric
        return metric, lambda: MeanMeter(terms, final)
    if text == "loss":
        return _LOSS, None
    if text == "kappa" and task == "ordinal":
        return _CLASSES[text][0], lambda: FunctionMeter(kappa_of_ranks)
    if text in _CLASSES:
        metric, name, options = _CLASSES[text]
        if task in NUMBERS:
            raise InputError(f"metric is {text!r}, of classes, and the task is {task}; choose rmse, mae or r2")
        one = _of_torchmetrics(name, options, task, outputs)
        return metric, lambda: TorchMeter(one, _shape_of(task))
    if text in _NUMBERS:
        metric, name, options = _NUMBERS[text]
        import torchmetrics

        with warnings.catch_warnings():
            # that it keeps all outputs, which a meter of one part of the data may
            warnings.simplefilter("ignore", UserWarning)
            one = getattr(torchmetrics, name)(**options)
        return metric, lambda: TorchMeter(one, _shape_of(task))
    return _of_user(text, task, unit)


def _of_user(text: str, task: str, unit: str) -> tuple[Metric, Callable[[], Meter]]:
    name, _, direction = text.rpartition(":")
    if direction not in _DIRECTIONS:
        name, direction = text, ""
    if user_code.reference_in(name) is None and not user_code.is_registered("metric", name):
        raise unknown("metric", name, NAMES, hint="or module:name, with :lower or :higher")
    value = user_code.get("metric", name)
    if isinstance(value, torch.nn.ModuleDict | dict):  # the first is torchmetrics' MetricCollection
        names = " or ".join(map(repr, value)) or "none"
        raise InputError(f"metric {name} is a collection of several, {names}; give one of them")
    higher = _DIRECTIONS.get(direction, getattr(value, "higher_is_better", getattr(value, "higher", None)))
    if higher is None:
        raise InputError(f"metric {name} has no direction; write {name}:lower or {name}:higher")
    if not hasattr(value, "metric_state") and not (inspect.isclass(value) and hasattr(value, "higher_is_better")):
        if not callable(value):
            raise InputError(f"metric {name} is {type(value).__name__}; give a function or a torchmetrics object")
        title = str(getattr(value, "label", "")) or name.rpartition(":")[2].replace("_", " ")
        percent = bool(getattr(value, "percent", False))
        metric = Metric(title, str(getattr(value, "unit", "")), bool(higher), percent)
        return metric, lambda: FunctionMeter(value)
    if inspect.isclass(value):
        try:
            value = value()
        except (TypeError, ValueError) as error:
            raise InputError(f"metric {name} cannot be made: {error}; name an object of it instead") from None
    title = re.sub(
        r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub("^(Multiclass|Multilabel|Binary)", "", type(value).__name__)
    )
    bounds = getattr(value, "plot_lower_bound", None), getattr(value, "plot_upper_bound", None)
    metric = Metric(title.lower(), "", bool(higher), bool(higher) and bounds == (0.0, 1.0))
    distance = (
        type(value).__name__ in ("MeanAbsoluteError", "MeanSquaredError") and getattr(value, "squared", 0) != 1
    )
    return _with_unit(metric, unit) if distance else metric, lambda: TorchMeter(value, _shape_of(task))


def _with_unit(metric: Metric, unit: str) -> Metric:
    return Metric(metric.name, unit, metric.higher, metric.percent)


def _of_torchmetrics(name: str, options: dict[str, Any], task: str, outputs: int) -> Any:
    from torchmetrics import classification

    if task == "multi-label":
        kind, counts = "Multilabel", {"num_labels": outputs}
    elif outputs == 1:
        kind, counts, options = "Binary", {}, {k: v for k, v in options.items() if k != "average"}
    else:
        kind, counts = "Multiclass", {"num_classes": outputs}
    cls = getattr(classification, f"{kind}{name}", None)
    if cls is None:
        raise InputError(f"metric {name} is not defined for {task}; choose another, or module:name")
    ignored = {} if kind == "Multilabel" else {"ignore_index": IGNORED}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return cls(**counts, **options, **ignored, validate_args=False)


def _shape_of(task: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return how outputs and targets of a task become the predictions and targets that torchmetrics takes."""

    def shape(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if task in NUMBERS:
            return like_target(output, y).contiguous(), y.to(output.dtype)
        if task == "multi-label":
            return output.sigmoid(), y.long()
        if output.numel() == y.numel():
            return output.reshape(y.shape).sigmoid(), y.long()
        if y.is_floating_point() and y.shape == output.shape:
            return output, y.argmax(1)
        return classes_second(output, y) if task != "segmentation" else output, y

    return shape
