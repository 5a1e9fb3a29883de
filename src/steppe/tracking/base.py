"""The interface of a tracker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """A run as trackers show it: its name, its digest and its configuration."""

    name: str
    digest: str
    config: Mapping[str, Any]

    def settings(self) -> dict[str, str]:
        """Return the configuration as text, nested settings with a dot."""
        texts = flatten(self.config, ".")
        return {k: " ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in texts.items()}


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
