"""What is run: a configuration and the folder it happens in, which one process or team holds at a time."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from steppe.config import Run
from steppe.errors import RunError
from steppe.training.run import TrainingStatus

PATIENCE = 20.0  # seconds that a worker of a killed comparison may take to notice and leave its folder


class Runnable(Protocol):
    """What is launched: a run and the folder it happens in."""

    @property
    def run(self) -> Run:
        """The configuration."""

    @property
    def folder(self) -> Path:
        """Where its records are."""


J = TypeVar("J", bound=Runnable)
Listen = Callable[[J, TrainingStatus | dict[str, Any] | str], None]


@contextlib.contextmanager
def locked_run(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the run's lock, so that no two processes ever train in one folder.

    The system releases it when the process ends, however it ends. Raises RunError if another process still holds
    it after ``patience`` seconds, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}; free the folder and run again") from None
    with lock:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RunError(f"another process is at work in {folder}; wait for it to end") from None
                time.sleep(0.1)
        yield
