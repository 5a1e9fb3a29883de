"""Runs as processes of this machine, a few at a time; one that is killed takes nothing else with it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from steppe import hardware
from steppe.config import Run
from steppe.distributed.forkserver import forkserver_context
from steppe.experiments.run_lock import PATIENCE, J, Listen
from steppe.experiments.worker import WORKERS, given_up, train_job
from steppe.training.run import TrainingStatus


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection


def launch(jobs: Sequence[J], workers: int, listen: Listen[J]) -> dict[J, str]:
    """Run all jobs, at most ``workers`` at once; ``listen(job, news)`` hears of progress, results and errors.

    A run whose worker is killed goes on from its checkpoint in another one, up to `WORKERS` of them. Returns the
    errors by job. On Ctrl-C the workers are stopped and KeyboardInterrupt goes on; each run resumes from its last
    checkpoint when it is launched again.

    Raises OSError if the system lets this process open too few files for them.
    """
    # once in the server, so that a worker starts in a fraction of a second; the second is what torch imports with
    # the first optimizer. With a GPU that imports Triton too, and what has touched a GPU must not be forked
    more = () if hardware.device().type == "cuda" else ("torch._dynamo",)
    context = forkserver_context(workers, "steppe.training.run", *more)
    waiting = list(jobs)
    left = dict.fromkeys(waiting, WORKERS)
    active: dict[J, _Worker] = {}
    errors: dict[J, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                # a daemon could have no processes of its own, which a run that streams its images has
                process = context.Process(target=_work, args=(job.run, job.folder, theirs), daemon=False)
                process.start()
                theirs.close()
                active[job] = _Worker(process, ours)
                left[job] -= 1
            ready = wait([w.pipe for w in active.values()])
            for job, worker in [(j, w) for j, w in active.items() if w.pipe in ready]:
                try:
                    news = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    del active[job]
                    cause = _farewell(worker)
                    if cause is None:
                        continue
                    if left[job]:
                        waiting.insert(0, job)
                        continue
                    news = given_up(cause)
                if isinstance(news, str):
                    errors[job] = news
                listen(job, news)
    finally:
        for worker in active.values():
            worker.process.kill()
            worker.process.join()
    return errors


def _farewell(worker: _Worker) -> str | None:
    """Return how a worker that closed its pipe ended, None if in order."""
    worker.pipe.close()
    worker.process.join()
    code = worker.process.exitcode
    if not code:
        return None
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _work(run: Run, folder: Path, pipe: Connection) -> None:
    """Do one run in this process and tell the parent; leave when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(news: TrainingStatus | dict[str, Any] | str) -> None:
        try:
            pipe.send(news)
        except OSError:
            os._exit(0)

    with contextlib.closing(pipe):
        tell(train_job(run, folder, tell, PATIENCE))
