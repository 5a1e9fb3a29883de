"""Runs as processes of this machine; one that is killed affects no other."""

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from steppe import hardware
from steppe.config import Run
from steppe.config.user_code import Code
from steppe.distributed.forkserver import forkserver_context
from steppe.experiments.run_lock import PATIENCE, ComparisonRun, News, Progress
from steppe.experiments.worker import WORKERS, killed_message, train_job


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection


def launch(jobs: Sequence[ComparisonRun], workers: int, progress: Progress) -> dict[ComparisonRun, str]:
    """Run all jobs, at most ``workers`` at once, and return the errors by job.

    ``progress(job, news)`` is called with each status, result and error. A run whose worker is killed resumes from
    its checkpoint in another worker, up to `WORKERS` of them. On Ctrl-C the workers are killed and
    KeyboardInterrupt is raised; each run resumes when it is launched again.

    Raises OSError if the limit of open files is too low.
    """
    # imported once in the server, so that a worker starts in a fraction of a second; torch imports torch._dynamo
    # with the first optimizer. On a GPU that imports Triton too, and a process that has used a GPU must not fork
    more = () if hardware.device().type == "cuda" else ("torch._dynamo",)
    context = forkserver_context(workers, "steppe.training.run", *more)
    code = Code()
    waiting = list(jobs)
    attempts = dict.fromkeys(waiting, WORKERS)
    active: dict[ComparisonRun, _Worker] = {}
    errors: dict[ComparisonRun, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                # not a daemon: daemons may have no children, which a run with data workers has
                arguments = (code, job.run, job.folder, sender)  # in this order: a run's method may be of the code
                process = context.Process(target=_work, args=arguments, daemon=False)
                process.start()
                sender.close()
                active[job] = _Worker(process, receiver)
                attempts[job] -= 1
            ready = wait([w.pipe for w in active.values()])
            for job, worker in [(j, w) for j, w in active.items() if w.pipe in ready]:
                try:
                    news = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    del active[job]
                    cause = _cause_of_death(worker)
                    if cause is None:
                        continue
                    if attempts[job]:
                        waiting.insert(0, job)
                        continue
                    news = killed_message(cause)
                if isinstance(news, str):
                    errors[job] = news
                progress(job, news)
    finally:
        for worker in active.values():
            worker.process.kill()
        for worker in active.values():
            worker.process.join()
    return errors


def _cause_of_death(worker: _Worker) -> str | None:
    """Return how a worker that closed its pipe ended, None if with exit code 0."""
    worker.pipe.close()
    worker.process.join()
    code = worker.process.exitcode
    if not code:
        return None
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _work(code: Code, run: Run, folder: Path, pipe: Connection) -> None:
    """Train one run in this process and send the parent all news; exit when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(news: News) -> None:
        try:
            pipe.send(news)
        except OSError:
            os._exit(0)

    with contextlib.closing(pipe):
        send(train_job(run, folder, send, PATIENCE))
