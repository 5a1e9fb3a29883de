"""Two processes that talk over gloo, started once and kept for all jobs; what hangs is killed."""

from __future__ import annotations

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
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from steppe.testing.result import CheckFailed, NotApplicable

SIZE = 2
GRACE = 5.0  # seconds that the others get after one process has failed
Answer = tuple[str, Any]


class ProcessPool:
    """The processes; ``timeout`` is the longest that one job may take, in seconds."""

    def __init__(self, timeout: float = 60.0):
        self.timeout = timeout
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run ``work(rank, *arguments)`` in every process and return what each returned.

        Raises Failed if it raises in a process, or takes too long, and NotApplicable if it cannot be sent.
        """
        try:
            job = pickle.dumps((work, arguments))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise NotApplicable(_unsendable(error)) from None
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send_bytes(job)
        answers = self._collect(time.monotonic() + self.timeout)
        failed = [a[1] for a in answers if a and a[0] == "failed"]
        no_answer = [a[1] for a in answers if a and a[0] == "n/a"]
        if no_answer and not failed and None not in answers:
            raise NotApplicable(no_answer[0])
        if failed or None in answers:
            self.close(kill=True)
            if not failed:
                raise CheckFailed(f"no end within {self.timeout:g} s: the processes wait for each other")
            alone = " (while the other went on)" if len(failed) < SIZE else ""
            raise CheckFailed(f"{failed[0]}{alone}")
        return [torch.load(io.BytesIO(a[1]), weights_only=False) for a in answers if a]

    def _collect(self, until: float) -> list[Answer | None]:
        answers: list[Answer | None] = [None] * SIZE
        while None in answers and time.monotonic() < until:
            for rank, pipe in enumerate(self.pipes):
                if answers[rank] is None and pipe.poll(0.002):
                    try:
                        answers[rank] = pickle.loads(pipe.recv_bytes())
                    except EOFError:
                        answers[rank] = ("failed", "the process died")
            if any(a is not None and a[0] == "failed" for a in answers):
                until = min(until, time.monotonic() + GRACE)
                # the one that waits for it will not come back
                if all(a is not None or not p.poll(GRACE) for a, p in zip(answers, self.pipes, strict=True)):
                    break
        return answers

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
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


def in_a_line(error: BaseException) -> str:
    """Return an error's type and its first words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _unsendable(error: BaseException) -> str:
    return f"cannot be sent to another process, define it in a module ({in_a_line(error)})"


def _serve(rank: int, port: int, pipe: Connection) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # on Ctrl-C the first process ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
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
        return "n/a", _unsendable(error)
    try:
        stream = io.BytesIO()
        torch.save(work(rank, *arguments), stream)
        return "done", stream.getvalue()
    except NotApplicable as reason:
        return "n/a", str(reason)
    except Exception as error:
        return "failed", in_a_line(error)
