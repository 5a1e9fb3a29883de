"""The interface of a tracker."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from steppe.tasks.metric import ACCURACY, Metric


@dataclass(frozen=True)
class RunInfo:
    """A run as trackers show it: its name, its digest, its configuration, its metric and what it is trained on."""

    name: str
    digest: str
    config: Mapping[str, Any]
    metric: Metric = ACCURACY
    samples: str = "images"

    def settings(self) -> dict[str, str]:
        """Return the configuration as text, nested settings with a dot; a metric with its unit and direction."""
        texts = flatten(self.config, ".")
        if self.metric != ACCURACY:
            unit = "share" if self.metric.percent else self.metric.unit
            better = f"{'higher' if self.metric.higher else 'lower'} is better"
            texts |= {"metric": ", ".join(filter(None, (self.metric.name, unit, better)))}
        return {k: " ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in texts.items()}

    def name_of(self, key: str) -> str:
        """Return the name of a number of the records as trackers show it: ``val_RMSE`` for ``val_metric``."""
        name = re.sub(r"[^\w.-]+", "_", self.metric.name)
        key = re.sub(r"(^|[_/])metric(?=$|/)", lambda match: match[1] + name, key)
        return key.replace("images_per_second", f"{self.samples}_per_second")


class Tracker(Protocol):
    """One tracker, open for one run.

    Each module of a tracker has ``begin(folder, info, key, lines)``, its class: ``folder`` is its own folder,
    ``lines`` the number of epochs that were sent before, and ``key`` the `key` of the tracker that sent them, None
    at first.
    """

    key: str | None

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log one epoch's numbers."""

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Log the run's result; ``status`` is 'ok' or 'failed'."""

    def close(self) -> None:
        """Flush and close."""


def flatten(content: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return the values of nested mappings, with the keys of each joined by the separator."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        inner = flatten(value, separator) if isinstance(value, Mapping) else None
        values |= {key: value} if inner is None else {f"{key}{separator}{k}": v for k, v in inner.items()}
    return values
