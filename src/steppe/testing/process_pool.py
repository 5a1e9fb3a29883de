"""Two processes that communicate, started once and used for all jobs; a job that hangs is killed.

They communicate over gloo, and on GPUs over NCCL, each with a GPU of its own.
"""

import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from steppe.distributed.forkserver import check_main_guard, without_working_folder
from steppe.testing.result import CheckFailed, NotApplicable

SIZE = 2
GRACE = 5.0  # seconds that the other process gets after one has failed
Answer = tuple[str, Any]


class ProcessPool:
    """The processes on a ``device``; ``timeout`` is the longest that one job may take, in seconds."""

    def __init__(self, timeout: float = 60.0, device: str = "cpu"):
        self.timeout, self.device = timeout, device
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run ``work(rank, *arguments)`` in every process and return what each returned.

        Raises CheckFailed if it raises in a process or takes too long, and NotApplicable if it cannot be pickled.
        """
        try:
            job = pickle.dumps((work, arguments))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise NotApplicable(_not_picklable(error)) from None
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send_bytes(job)
        answers = self._collect(time.monotonic() + self.timeout)
        failed = [a[1] for a in answers if a and a[0] == "failed"]
        not_applicable = [a[1] for a in answers if a and a[0] == "n/a"]
        if not_applicable and not failed and None not in answers:
            raise NotApplicable(not_applicable[0])
        if failed or None in answers:
            self.close(kill=True)
            if not failed:
                raise CheckFailed(f"no end within {self.timeout:g} s: the processes wait for each other")
            alone = " (while the other went on)" if len(failed) < SIZE else ""
            raise CheckFailed(f"{failed[0]}{alone}")
        return [torch.load(io.BytesIO(a[1]), weights_only=False) for a in answers if a]

    def _collect(self, until: float) -> list[Answer | None]:
        """Return the answers that arrive in time; one failure shortens the time for the other to ``GRACE``."""
        answers: list[Answer | None] = [None] * SIZE
        while None in answers and (seconds := until - time.monotonic()) > 0:
            waiting = {pipe: rank for rank, pipe in enumerate(self.pipes) if answers[rank] is None}
            for pipe in wait(list(waiting), seconds):
                assert isinstance(pipe, Connection)
                try:
                    answers[waiting[pipe]] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    answers[waiting[pipe]] = ("failed", "the process died")
            if any(a is not None and a[0] == "failed" for a in answers):
                until = min(until, time.monotonic() + GRACE)
        return answers

    def _start(self) -> None:
        check_main_guard()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs, self.device), daemon=True)
            with without_working_folder():
                process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def close(self, kill: bool = False) -> None:
        """End the processes; another job starts new ones."""
        for pipe in self.pipes:
            if not kill:
                try:
                    pipe.send_bytes(b"")
                except OSError:
                    continue
        for process in self.processes:
            if kill:
                process.kill()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []


def as_one_line(error: BaseException) -> str:
    """Return an error's type and the beginning of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _not_picklable(error: BaseException) -> str:
    return f"cannot be sent to another process, define it in a module ({as_one_line(error)})"


def _serve(rank: int, port: int, pipe: Connection, device: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # on Ctrl-C the first process ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=SIZE)
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return
        if not job:
            break
        pipe.send_bytes(pickle.dumps(_answer(rank, job)))
    # a process that leaves while the other still sends aborts
    dist.barrier()
    dist.destroy_process_group()


def _answer(rank: int, job: bytes) -> Answer:
    try:
        work, arguments = pickle.loads(job)
    except Exception as error:
        return "n/a", _not_picklable(error)
    try:
        stream = io.BytesIO()
        torch.save(work(rank, *arguments), stream)
        return "done", stream.getvalue()
    except NotApplicable as reason:
        return "n/a", str(reason)
    except Exception as error:
        return "failed", as_one_line(error)
