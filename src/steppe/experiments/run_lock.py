"""The lock of a run's folder, and the types that all launchers share."""

import contextlib
import errno
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from steppe import records
from steppe.config import Run
from steppe.errors import RunError
from steppe.training.run import RESULT, TrainingStatus

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

# flock on Lustre and NFS that are mounted without locks
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
PATIENCE = 20.0  # seconds; a worker of a killed comparison needs some to notice and release its folder


@dataclass(frozen=True)
class ComparisonRun:
    """One run of a comparison, its folder, and its name in progress and errors."""

    run: Run = field(hash=False)  # a method of a user's may have a list as setting
    folder: Path
    name: str

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return (self.folder / RESULT).exists()


News = TrainingStatus | dict[str, Any] | str  # progress, the result, or the error message
Progress = Callable[[ComparisonRun, News], None]


class TimeIsUp(Exception):  # noqa: N818 - an end that was planned
    """The deadline of a command has passed; what is unfinished resumes."""


def until(deadline: float, progress: Progress) -> Progress:
    """Return a progress callback that raises `TimeIsUp` after ``deadline``, of ``time.monotonic``."""

    def checked(job: ComparisonRun, news: News) -> None:
        progress(job, news)
        if time.monotonic() > deadline:
            raise TimeIsUp

    return checked


@contextlib.contextmanager
def file_lock(path: Path, busy: str, refused: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock on the file at ``path``; the system releases it when the process ends, however it ends.

    On a file system without locks, and on Windows, nothing is locked, which is logged once.

    Raises RunError ``busy`` if another process holds it for ``patience`` seconds, and RunError with the remedy
    ``refused`` if the file cannot be opened.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; {refused}") from None
    with file:
        deadline = time.monotonic() + patience
        while True:
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "Windows has no flock")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RunError(busy) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise RunError(f"cannot lock {path}: {error.strerror}; {refused}") from None
                _warn_no_locks(str(error.strerror))
                break
        yield


@cache
def _warn_no_locks(reason: str) -> None:
    # of a comparison's processes, the first one warns
    if multiprocessing.parent_process() is None:
        _log.warning("the file system has no locks (%s): start no second command on the same runs", reason)


@contextlib.contextmanager
def locked_run(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a run's folder, so that no two processes ever train in it; makes the folder.

    Raises RunError if another process holds the lock for ``patience`` seconds, or the folder cannot be written.
    """
    records.make_folder(folder)
    busy = f"another process is at work in {folder}; wait for it to end"
    with file_lock(folder / "lock", busy, "make sure it can be written and run the same command again", patience):
        yield
