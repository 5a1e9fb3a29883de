"""Runs on other machines: the same loop for every cluster, which says how a worker is started and how it ended.

All machines see the same folders under the same paths. That is what lets any of them take up a run that another
one was killed over, and it is how progress comes home: a worker writes it beside its checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from steppe import records
from steppe.config import Run
from steppe.errors import RunError
from steppe.experiments.run_lock import J, Listen
from steppe.experiments.worker import WORKERS, given_up, train_job
from steppe.training.run import TrainingStatus

NEWS = "news.json"
_SILENCE = 1.0  # seconds between two pieces of news of a run
_PATIENCE = 120.0  # seconds until a file server lets go of a lock whose machine is gone
_OURS = ("STEPPE_CACHE", "STEPPE_DATA", "XDG_CACHE_HOME")


def _settings() -> dict[str, str]:
    return {name: os.environ[name] for name in _OURS if name in os.environ}


@dataclass(frozen=True)
class Task:
    """One run as it travels to a worker: what to train, in which folder, where relative paths start."""

    run: Run
    folder: Path
    home: Path = field(default_factory=Path.cwd)
    settings: dict[str, str] = field(default_factory=_settings)

    def __call__(self) -> dict[str, Any] | str:
        """Do the run here; return its result, or in words why there is none."""
        os.environ.update(self.settings)
        os.chdir(self.home)
        spoke = 0.0

        def tell(news: TrainingStatus) -> None:
            nonlocal spoke
            if time.monotonic() - spoke > _SILENCE:
                spoke = time.monotonic()
                records.write_json(self.folder / NEWS, asdict(news))

        said = train_job(self.run, self.folder, tell, _PATIENCE)
        (self.folder / NEWS).unlink(missing_ok=True)
        return said


@dataclass(frozen=True)
class TaskResult:
    """How a worker ended: what its task said, or, if it was killed, by what."""

    said: dict[str, Any] | str | None
    killed: str = ""


class Cluster(Protocol):
    """Where workers run; ``pause`` is how many seconds lie between two looks at them."""

    @property
    def pause(self) -> float:
        """Seconds."""

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Ask for a worker per task, and return what each is known by."""

    def ended(self, worker: Any) -> TaskResult | None:
        """Return how a worker ended, None while it waits or works."""

    def cancel(self, worker: Any) -> None:
        """Stop a worker."""


def launch_on_cluster(jobs: Sequence[J], at_once: int, cluster: Cluster, listen: Listen[J]) -> dict[J, str]:
    """Run all jobs on a cluster, at most ``at_once`` of them (0: as many as it carries); as `launch` does here.

    A run whose worker is killed is given to another, up to `WORKERS` of them. On Ctrl-C all workers are stopped.
    """
    waiting = list(jobs)
    left = dict.fromkeys(waiting, WORKERS)
    active: dict[J, Any] = {}
    heard: dict[J, bytes] = {}
    errors: dict[J, str] = {}
    try:
        while waiting or active:
            room = (at_once or len(jobs)) - len(active)
            next_ones, waiting = waiting[:room], waiting[room:]
            if next_ones:
                tasks = [Task(job.run, job.folder.resolve()) for job in next_ones]
                active.update(zip(next_ones, cluster.submit(tasks), strict=True))
                left.update({job: left[job] - 1 for job in next_ones})
            for job, worker in list(active.items()):
                _pass_on(job, heard, listen)
                end = cluster.ended(worker)
                if end is None:
                    continue
                del active[job]
                if end.said is None and left[job]:
                    waiting.insert(0, job)
                    continue
                news = given_up(end.killed) if end.said is None else end.said
                if isinstance(news, str):
                    errors[job] = news
                listen(job, news)
            time.sleep(cluster.pause if active else 0)
    finally:
        for worker in active.values():
            cluster.cancel(worker)
    return errors


def _pass_on(job: J, heard: dict[J, bytes], listen: Listen[J]) -> None:
    """Let the listener hear of a run's progress if there is any since the last time."""
    try:
        content = (job.folder / NEWS).read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot read {job.folder / NEWS}: {error.strerror}") from None
    if content != heard.get(job):
        heard[job] = content
        listen(job, TrainingStatus(**json.loads(content)))
