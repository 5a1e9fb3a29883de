"""Runs as processes of this machine; one that is killed affects no other.

The data are loaded once: workers map the file of decoded images that the launching process has mapped. On a GPU
each run has a copy of the bytes, 0.2 GB for CIFAR. To share one (CUDA IPC) would save a part of a second, but end
all runs with the process that owns it, and some systems refuse it. One process for all runs would have a single
interpreter to launch the work of all.
"""

import contextlib
import os
import pickle
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from steppe import hardware
from steppe.config import Run
from steppe.config.run import DataKey
from steppe.config.user_code import Code
from steppe.data.dataset import DataSet
from steppe.distributed.forkserver import forkserver_context
from steppe.errors import InputError
from steppe.experiments.launchers._packing import Packing
from steppe.experiments.run_lock import PATIENCE, ComparisonRun, News, Progress
from steppe.experiments.split_cache import SplitCache
from steppe.experiments.worker import WORKERS, killed_message, train_job
from steppe.training.run import TrainingStatus

_MOST = 64  # runs at a time, if their number is chosen here


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection


def launch(
    jobs: Sequence[ComparisonRun], workers: int, progress: Progress, sets: Mapping[DataKey, DataSet] | None = None
) -> dict[ComparisonRun, str]:
    """Run all jobs, at most ``workers`` at once, and return the errors by job.

    With 0 workers their number grows as long as they train on more images per second together (see `Packing`).
    ``sets`` are the data sets by `Run.data_key`, of which other splits are loaded here too; without any, workers
    load them themselves.

    ``progress(job, news)`` is called with each status, result and error. A run whose worker is killed resumes from
    its checkpoint in another worker, up to `WORKERS` of them. On Ctrl-C the workers are killed and
    KeyboardInterrupt is raised; each run resumes when it is launched again.

    Raises OSError if the limit of open files is too low.
    """
    # imported once in the server, so that a worker starts in a fraction of a second; torch imports torch._dynamo
    # with the first optimizer. On a GPU that imports Triton too, and a process that has used a GPU must not fork
    more = () if hardware.device().type == "cuda" else ("torch._dynamo",)
    context = forkserver_context(workers or min(len(jobs), _MOST), "steppe.training.run", *more)
    code = Code()
    packing = Packing.fixed(workers) if workers else Packing(min(len(jobs), _MOST))
    splits = SplitCache(sets or {}, 2)
    pickled: dict[DataKey, bytes | None] = {}

    def data_of(run: Run) -> bytes | None:
        if run.data_key not in pickled and sets:
            while len(pickled) > 1:
                del pickled[next(iter(pickled))]
            with contextlib.suppress(InputError):  # the worker names the error
                pickled[run.data_key] = _pickled(splits.get(run))
        return pickled.get(run.data_key)

    waiting = list(jobs)
    attempts = dict.fromkeys(waiting, WORKERS)
    active: dict[ComparisonRun, _Worker] = {}
    errors: dict[ComparisonRun, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < packing.target:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                # not a daemon: daemons may have no children, which a run with data workers has
                # in this order: a run's method may be of the code
                arguments = (code, job.run, job.folder, sender, data_of(job.run))
                process = context.Process(target=_work, args=arguments, daemon=False)
                process.start()
                sender.close()
                active[job] = _Worker(process, receiver)
                attempts[job] -= 1
            ready = wait([w.pipe for w in active.values()])
            for job, worker in [(j, w) for j, w in active.items() if w.pipe in ready]:
                try:
                    news, room = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    del active[job]
                    packing.ended(job)
                    cause = _cause_of_death(worker)
                    if cause is None:
                        continue
                    if attempts[job]:
                        waiting.insert(0, job)
                        continue
                    news = killed_message(cause)
                if isinstance(news, TrainingStatus):
                    packing.report(job, news.images, room)
                elif isinstance(news, str) and packing.blames(news, len(active)):
                    _cause_of_death(active.pop(job))
                    packing.ended(job)
                    (job.folder / "error.log").unlink(missing_ok=True)
                    waiting.insert(0, job)
                    attempts[job] += 1
                    continue
                if isinstance(news, str):
                    errors[job] = news
                progress(job, news)
    finally:
        for worker in active.values():
            worker.process.kill()
        for worker in active.values():
            worker.process.join()
    return errors


def _pickled(images: DataSet) -> bytes | None:
    """Return a data set for other processes, None if they have to load it.

    Images that are not mapped are copied: in shared memory they would need a large /dev/shm.
    """
    try:
        return pickle.dumps(images, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _cause_of_death(worker: _Worker) -> str | None:
    """Return how a worker that closed its pipe ended, None if with exit code 0."""
    worker.pipe.close()
    worker.process.join()
    code = worker.process.exitcode
    if not code:
        return None
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _work(code: Code, run: Run, folder: Path, pipe: Connection, data: bytes | None) -> None:
    """Train one run in this process and send the parent all news; exit when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(news: News) -> None:
        try:
            room = hardware.room_on_gpu() if isinstance(news, TrainingStatus) else None
            pipe.send((news, room))
        except OSError:
            os._exit(0)

    with contextlib.closing(pipe):
        send(train_job(run, folder, send, PATIENCE, data=data))
