"""Functions in processes of their own: how freed memory is kept is a property of the whole process."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from steppe import models
from steppe.bench.timing import at_least_one, no_progress
from steppe.errors import InputError

Remote = Callable[[int], Any]


@dataclass(frozen=True)
class Setup:
    """The network, images and timings of a benchmark in several processes.

    Raises InputError in this process, as one line, for a number below 1 or a network that cannot be built.
    """

    model: str
    batch: int
    size: int
    steps: int
    repeats: int
    progress: Callable[[int], None] = no_progress

    def __post_init__(self) -> None:
        at_least_one(batch=self.batch, size=self.size, steps=self.steps, repeats=self.repeats)
        with torch.random.fork_rng():
            models.build(self.model, classes=10, channels=3, size=self.size)


@contextmanager
def isolated(name: str, make: Callable[..., Remote], *arguments: Any) -> Iterator[Remote]:
    """Start a process that builds a function with ``make(*arguments)``; yield a function that calls it there.

    A call raises InputError, which has ``name`` in it, if the process has ended.
    """
    context = multiprocessing.get_context("spawn")
    local, remote = context.Pipe()
    # not a daemon: a daemon may not start data loading workers
    process = context.Process(target=_serve, args=(remote, make, arguments))
    process.start()
    remote.close()

    def call(number: int) -> Any:
        try:
            local.send(number)
            return local.recv()
        except (EOFError, BrokenPipeError):
            raise InputError(
                f"the process of {name!r} ended; if memory was short, give a smaller batch or size"
            ) from None

    try:
        yield call
    finally:
        local.close()
        process.join(10)
        process.kill()


def _serve(connection: Connection, make: Callable[..., Remote], arguments: tuple[Any, ...]) -> None:
    """Answer calls until the other end is closed."""
    function = make(*arguments)
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        connection.send(function(number))
