"""The interface of a tracker."""

from __future__ import annotations

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
        return _flat_text(self.config)


class Tracker(Protocol):
    """One tracker, open for one run.

    Each module of a tracker has ``begin(folder, info, key, lines)``, which opens it: ``folder`` is its own folder,
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


def _flat_text(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    texts: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            texts |= _flat_text(value, f"{prefix}{key}.")
        else:
            texts[f"{prefix}{key}"] = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return texts
