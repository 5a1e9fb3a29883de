"""Functions in processes of their own: how freed memory is kept is a property of the whole process."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from steppe.errors import InputError

Remote = Callable[[int], Any]


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
