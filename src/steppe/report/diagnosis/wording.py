"""What the texts of a diagnosis call the metric, the loss and the samples of a data set."""

from dataclasses import dataclass
from typing import Any

from steppe.records import Comparison
from steppe.report.comparison.summary import metric_of
from steppe.report.formatting import samples_name
from steppe.report.metric_text import ACCURACY_TEXT, MetricText

_LOSSES = {
    "cross-entropy": ("Cross-entropy", "nats"),
    "bce": ("Binary cross-entropy", "nats"),
    "mse": ("Mean squared error", ""),
    "mae": ("Mean absolute error", ""),
    "huber": ("Huber loss", ""),
}
_DEFAULTS = {"multi-label": "bce", "regression": "mse", "ordinal": "mse"}


@dataclass(frozen=True)
class Wording:
    """The metric, the measured loss with its unit (empty if it has none), and the samples."""

    text: MetricText = ACCURACY_TEXT
    loss: str = "Cross-entropy"
    unit: str = "nats"
    samples: str = "images"

    def with_unit(self, text: str) -> str:
        """Return ``text, nats``, or the text alone of a loss without a unit."""
        return f"{text}, {self.unit}" if self.unit else text

    @property
    def after(self) -> str:
        """Return the loss's unit after a value."""
        return self.unit and f" {self.unit}"

    def settings(self) -> dict[str, Any]:
        """Return what measures' names and sentences have in braces."""
        return {
            "metric": self.text.with_unit(self.text.name),
            "loss": self.loss,
            "kind": self.samples,
            "nats": self.unit and f", {self.unit}",
            "in_nats": self.unit and f", in {self.unit}",
        }


WORDING = Wording()


def wording_of(comparison: Comparison, dataset: str) -> Wording:
    """Return the wording of a data set of a comparison."""
    about, text = comparison.data.get(dataset, {}), metric_of(comparison, dataset)
    default = "model" if text.metric.name == "loss" else _DEFAULTS.get(str(about.get("task")), "cross-entropy")
    name = str(comparison.study.get("loss") or default).partition(":")[0]
    return Wording(text, *_LOSSES.get(name, ("Training loss", "")), samples_name(about))
