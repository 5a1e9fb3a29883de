"""What a tracker is told, and what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """A run as trackers show it: its name, the digest that names its folder, and its whole configuration."""

    name: str
    digest: str
    config: Mapping[str, Any]

    def settings(self) -> dict[str, str]:
        """Return the configuration as text, nested settings with a dot."""
        return dict(_texts(self.config))


class Tracker(Protocol):
    """One tracker, open for one run.

    Each module of trackers makes its own with ``begin(place, about, key, lines)``: ``place`` is a folder of its
    own, ``lines`` how many epochs it has had, ``key`` what it said that it wants to be told when the run goes on,
    None at first.
    """

    key: str | None

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take one epoch's numbers."""

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Take what the run ended with; ``status`` is 'ok' or 'failed'."""

    def close(self) -> None:
        """Write what is held and leave."""


def _texts(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            found += _texts(value, f"{prefix}{key}.")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found.append((f"{prefix}{key}", shown))
    return found
