"""A work in a process of its own: how memory is handed back, and what else runs, belong to a whole process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from steppe.errors import InputError

Ask = Callable[[int], Any]


@contextmanager
def apart(what: str, make: Callable[..., Ask], *about: Any) -> Iterator[Ask]:
    """Start a process that makes a work with ``make(*about)``; yield what asks it a number and waits.

    Asking raises InputError, which names ``what``, if the process has ended.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # not a daemon: such a process may have no workers
    process = context.Process(target=_answer, args=(there, make, about))
    process.start()
    there.close()

    def ask(number: int) -> Any:
        try:
            here.send(number)
            return here.recv()
        except (EOFError, BrokenPipeError):
            raise InputError(f"the process of {what!r} ended; batch or size may be too large for memory") from None

    try:
        yield ask
    finally:
        here.close()
        process.join(10)
        process.kill()


def _answer(connection: Connection, make: Callable[..., Ask], about: tuple[Any, ...]) -> None:
    """Answer until nobody asks any more."""
    answer = make(*about)
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        connection.send(answer(number))
