"""Trackers: a run's records, also shown in TensorBoard, Weights & Biases or MLflow.

    steppe compare --track tensorboard

A tracker follows the run's ``metrics.jsonl`` and ``timing.jsonl`` line by line; the number of lines that were sent
is stored in ``tracking/sent.json`` of the run's folder. So a resumed run sends nothing twice, and lines recorded
while a tracker was unreachable are sent when the run resumes. A tracker that fails is disabled with one line on
the standard error; training never stops for it.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from steppe import records
from steppe.config import TRACKERS
from steppe.errors import InputError
from steppe.tracking.base import RunInfo, Tracker, flatten

__all__ = ["TRACKERS", "RunInfo", "Tracker", "available", "following"]

FOLDER, SENT = "tracking", "sent.json"
_FILES = ("metrics.jsonl", "timing.jsonl")


def available(names: Sequence[str]) -> None:
    """Raise InputError with the command that installs it if one of these trackers is not installed."""
    for name in names:
        try:
            importlib.import_module(f"steppe.tracking.{name}")
        except ImportError as error:
            raise InputError(f"track is {name!r} and {error}; pip install 'steppe[{name}]'") from None


class TrackedRun:
    """Trackers that follow one run; see `following`."""

    def __init__(self, names: Sequence[str], folder: Path, info: RunInfo):
        self.folder, self.info = folder, info
        self._sent: dict[str, dict[str, Any]] = {}
        self._open: dict[str, Tracker] = {}
        path = folder / FOLDER / SENT
        if path.exists():
            self._sent = json.loads(path.read_text())
        for name in names:
            self._guarded(name, partial(self._begin, name))

    def follow(self) -> None:
        """Send each tracker the lines that it has not received."""
        if not self._open:
            return
        metrics, timing = (records.read_lines(self.folder / name) for name in _FILES)
        lines = [epoch | times for epoch, times in zip(metrics, timing, strict=False)]
        for name in list(self._open):
            self._guarded(name, partial(self._send, name, lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Send the run's result: metric and loss on the test data, and its status."""
        values = self._named({f"test_{which}": part for which, part in (result.get("test") or {}).items()})
        for name, tracker in list(self._open.items()):
            self._guarded(name, partial(tracker.finish, values, str(result["status"])))

    def close(self) -> None:
        """Close every tracker."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)

    def _begin(self, name: str) -> None:
        folder = self.folder / FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        sent = self._sent.setdefault(name, {"lines": 0, "key": None})
        module = importlib.import_module(f"steppe.tracking.{name}")
        tracker: Tracker = module.begin(folder, self.info, sent["key"], sent["lines"])
        self._open[name] = tracker
        sent["key"] = tracker.key

    def _send(self, name: str, lines: list[dict[str, Any]]) -> None:
        sent = self._sent[name]
        for line in lines[sent["lines"] :]:
            self._open[name].log(int(line["epoch"]), self._named({k: v for k, v in line.items() if k != "epoch"}))
            sent["lines"] += 1
            records.write_json(self.folder / FOLDER / SENT, self._sent)

    def _named(self, content: Mapping[str, Any]) -> dict[str, float]:
        return {self.info.name_of(key): value for key, value in flat(content).items()}

    def _guarded(self, name: str, fn: Callable[[], None]) -> None:
        try:
            fn()
        except Exception as error:
            self._open.pop(name, None)
            message = str(error).splitlines()[0] if str(error) else ""
            print(
                f"steppe: tracking by {name} failed and is disabled: {type(error).__name__}: {message}; "
                f"training continues, records are in {self.folder}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def following(names: Sequence[str], folder: Path, info: RunInfo) -> Iterator[TrackedRun]:
    """Open these trackers for the run of a folder, and close them; call `TrackedRun.follow` after each epoch.

    Raises InputError if one is not installed.
    """
    available(names)
    with closing(TrackedRun(names, folder, info)) as run:
        yield run


def flat(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record, nested ones as ``outer/inner``; other values are omitted."""
    values = flatten(content, "/").items()
    return {k: float(v) for k, v in values if isinstance(v, int | float) and not isinstance(v, bool)}
