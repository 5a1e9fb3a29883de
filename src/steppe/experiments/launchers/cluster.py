"""Runs on other machines: the loop that all clusters share.

All machines see the same folders under the same paths. So any worker can resume a run whose worker was killed, and
workers report progress in a file beside the checkpoint.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from steppe import records
from steppe.config import Run
from steppe.config.user_code import Code
from steppe.errors import InputError, RunError
from steppe.experiments.run_lock import ComparisonRun, Progress
from steppe.experiments.worker import WORKERS, killed_message, train_job
from steppe.training.run import TrainingStatus

PROGRESS = "progress.json"
_INTERVAL = 1.0  # seconds between two reports of a run
_PATIENCE = 120.0  # seconds until a file server releases the lock of a machine that is gone
_VARIABLES = ("STEPPE_CACHE", "STEPPE_DATA", "STEPPE_SAVE_SECONDS", "XDG_CACHE_HOME")


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


@dataclass(frozen=True)
class Task:
    """One run as it is sent to a worker, with the working directory and environment variables of the sender.

    ``code`` has what the user gave as objects; it is unpickled first, because a run's method may be of it.
    """

    run: Run
    folder: Path
    directory: Path = field(default_factory=Path.cwd)
    environment: dict[str, str] = field(default_factory=_environment)
    code: Code = field(default_factory=Code)

    def __getstate__(self) -> dict[str, Any]:
        return {"code": self.code, **vars(self)}

    def __call__(self) -> dict[str, Any] | str:
        """Train the run in this process; return its result, or the error message."""
        os.environ.update(self.environment)
        os.chdir(self.directory)
        reported = 0.0

        def report(status: TrainingStatus) -> None:
            nonlocal reported
            if time.monotonic() - reported > _INTERVAL:
                reported = time.monotonic()
                records.write_json(self.folder / PROGRESS, asdict(status))

        outcome = train_job(self.run, self.folder, report, _PATIENCE)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        return outcome


@dataclass(frozen=True)
class TaskResult:
    """How a worker ended: the outcome of its task, or None and what killed it."""

    outcome: dict[str, Any] | str | None
    killed_by: str = ""


class Cluster(Protocol):
    """Where workers run; ``pause`` is the number of seconds between two polls.

    ``sends_objects``: objects that no module has reach its workers in memory.
    """

    pause: float
    sends_objects: bool

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Submit the tasks, and return a handle of each worker."""

    def ended(self, worker: Any) -> TaskResult | None:
        """Return how a worker ended, None while it waits or works."""

    def cancel(self, worker: Any) -> None:
        """Stop a worker."""


def launch_on_cluster(
    jobs: Sequence[ComparisonRun], at_once: int, cluster: Cluster, progress: Progress
) -> dict[ComparisonRun, str]:
    """Run all jobs on a cluster, at most ``at_once`` at a time (0: no limit), and return the errors by job.

    ``progress``, killed workers and Ctrl-C as in `steppe.experiments.launchers.local.launch`.
    """
    code = Code()
    if not cluster.sends_objects and code.unnamed:
        raise InputError(
            f"{', '.join(code.unnamed)} cannot be imported by another process, as Slurm's jobs must; put it in a "
            "module (module:name), or use launcher local or ray"
        )
    waiting = list(jobs)
    attempts = dict.fromkeys(waiting, WORKERS)
    active: dict[ComparisonRun, Any] = {}
    reported: dict[ComparisonRun, bytes] = {}
    errors: dict[ComparisonRun, str] = {}
    try:
        while waiting or active:
            room = (at_once or len(jobs)) - len(active)
            batch, waiting = waiting[:room], waiting[room:]
            if batch:
                tasks = [Task(job.run, job.folder.resolve(), code=code) for job in batch]
                active.update(zip(batch, cluster.submit(tasks), strict=True))
                attempts.update({job: attempts[job] - 1 for job in batch})
            for job, worker in list(active.items()):
                _report(job, reported, progress)
                end = cluster.ended(worker)
                if end is None:
                    continue
                del active[job]
                if end.outcome is None and attempts[job]:
                    waiting.insert(0, job)
                    continue
                outcome = killed_message(end.killed_by) if end.outcome is None else end.outcome
                if isinstance(outcome, str):
                    errors[job] = outcome
                progress(job, outcome)
            time.sleep(cluster.pause if active else 0)
    finally:
        for worker in active.values():
            cluster.cancel(worker)
    return errors


def _report(job: ComparisonRun, reported: dict[ComparisonRun, bytes], progress: Progress) -> None:
    """Report a run's status if it has changed since the last time."""
    try:
        content = (job.folder / PROGRESS).read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot read {job.folder / PROGRESS}: {error.strerror}") from None
    if content != reported.get(job):
        reported[job] = content
        progress(job, TrainingStatus(**json.loads(content)))
