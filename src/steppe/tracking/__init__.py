"""What a run records, shown in TensorBoard, Weights & Biases or MLflow as well.

    steppe compare --track tensorboard

The records stay what counts: a tracker follows the run's ``metrics.jsonl`` and ``timing.jsonl``, line by line,
and how many lines it has had is kept in ``tracking/sent.json`` of the run's folder. So a run that goes on from its
checkpoint sends nothing twice, and what was recorded while a tracker could not be reached is sent when the run
goes on. A tracker that fails is left out from there on, with one line on the standard error; training never stops
for it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from steppe import records
from steppe.config import TRACKERS
from steppe.errors import InputError
from steppe.tracking.base import RunInfo, Tracker

__all__ = ["TRACKERS", "RunInfo", "Tracker", "available", "following"]

FOLDER, SENT = "tracking", "sent.json"
_FILES = ("metrics.jsonl", "timing.jsonl")


def available(names: Sequence[str]) -> None:
    """Raise InputError if one of these trackers is not installed, with the command that installs it."""
    for name in names:
        try:
            importlib.import_module(f"steppe.tracking.{name}")
        except ImportError as error:
            raise InputError(f"track is {name!r} and {error}; pip install 'steppe[{name}]'") from None


class TrackedRun:
    """Trackers that follow one run; see `following`."""

    def __init__(self, names: Sequence[str], folder: Path, about: RunInfo):
        self.folder, self.about = folder, about
        self._sent: dict[str, dict[str, Any]] = {}
        self._open: dict[str, Tracker] = {}
        path = folder / FOLDER / SENT
        if path.exists():
            self._sent = json.loads(path.read_text())
        for name in names:
            self._guarded(name, partial(self._begin, name))

    def follow(self) -> None:
        """Send each tracker the lines that it has not had."""
        if not self._open:
            return
        held = [records.read_lines(self.folder / name) for name in _FILES]
        lines = [dict(metrics) | times for metrics, times in zip(*held, strict=False)]
        for name in list(self._open):
            self._guarded(name, partial(self._send, name, lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Send what the run ended with: accuracies and losses on the test images, and whether it failed."""
        values = flat({f"test_{which}": part for which, part in (result.get("test") or {}).items()})
        for name, tracker in list(self._open.items()):
            self._guarded(name, partial(tracker.finish, values, str(result["status"])))

    def close(self) -> None:
        """Close every tracker."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)

    def _begin(self, name: str) -> None:
        place = self.folder / FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        held = self._sent.setdefault(name, {"lines": 0, "key": None})
        module = importlib.import_module(f"steppe.tracking.{name}")
        tracker: Tracker = module.begin(place, self.about, held["key"], held["lines"])
        self._open[name] = tracker
        held["key"] = tracker.key

    def _send(self, name: str, lines: list[dict[str, Any]]) -> None:
        held = self._sent[name]
        for line in lines[held["lines"] :]:
            self._open[name].log(int(line["epoch"]), flat({k: v for k, v in line.items() if k != "epoch"}))
            held["lines"] += 1
            records.write_json(self.folder / FOLDER / SENT, self._sent)

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._open.pop(name, None)
            said = str(error).splitlines()[0] if str(error) else ""
            print(
                f"steppe: tracking by {name} failed and is left out: {type(error).__name__}: {said}; "
                f"training goes on, records are in {self.folder}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def following(names: Sequence[str], folder: Path, about: RunInfo) -> Iterator[TrackedRun]:
    """Let these trackers follow the run of a folder: `Following.follow` after each epoch.

    Raises InputError if one is not installed.
    """
    available(names)
    followers = TrackedRun(names, folder, about)
    try:
        yield followers
    finally:
        followers.close()


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a record, nested ones as ``outer/inner``; what is not a number is left out."""
    found: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found
