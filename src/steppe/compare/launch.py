"""Runs as processes of this machine, a few at a time; one that dies takes nothing else with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from steppe import engine, machine
from steppe.compare.job import J, Listen, claimed
from steppe.config import Run
from steppe.engine import Progress
from steppe.errors import InputError, RunError


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection


def launch(jobs: Sequence[J], workers: int, listen: Listen[J]) -> dict[J, str]:
    """Run all jobs, at most ``workers`` at once; ``listen(job, news)`` hears of progress, results and errors.

    Returns the errors by job. On Ctrl-C the workers are stopped and KeyboardInterrupt goes on; each run
    resumes from its last checkpoint when it is launched again.
    """
    context = multiprocessing.get_context("forkserver")
    # torch is imported once in the server, so that a worker starts in a fraction of a second
    context.set_forkserver_preload(["steppe.engine", "sklearn.datasets"])
    waiting = list(jobs)
    active: dict[J, _Worker] = {}
    errors: dict[J, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(job.run, job.folder, theirs), daemon=True)
                process.start()
                theirs.close()
                active[job] = _Worker(process, ours)
            ready = wait([w.pipe for w in active.values()])
            for job, worker in [(j, w) for j, w in active.items() if w.pipe in ready]:
                try:
                    news = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    del active[job]
                    news = _farewell(worker)
                if isinstance(news, str):
                    errors[job] = news
                if news is not None:
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
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"its process ended by {cause}; start the same command again to go on"


def _work(run: Run, folder: Path, pipe: Connection) -> None:
    """Do one run in this process and tell the parent; leave when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    machine.keep_freed_memory()

    def tell(news: Progress | dict[str, Any] | str) -> None:
        try:
            pipe.send(news)
        except OSError:
            os._exit(0)

    try:
        with claimed(folder):
            tell(engine.fit(run, folder, engine.load_data(run), tell))
    except (InputError, RunError) as error:
        tell(str(error))
    except Exception as error:
        with contextlib.suppress(OSError):
            (folder / "error.log").write_text(traceback.format_exc())
        first = str(error).splitlines()[0] if str(error) else ""
        tell(f"{type(error).__name__}: {first} (details in {folder / 'error.log'})")
