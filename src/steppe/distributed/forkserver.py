"""Processes of this machine that are forked from a server, which has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

_FILES, _FILES_EACH = 32, 8  # what the server opens while it imports, and what each process takes


def forkserver_context(count: int, *preload: str) -> ForkServerContext:
    """Return the context in which ``count`` processes start; its server imports the modules of ``preload`` once.

    Ctrl-C goes to all processes of a terminal: the server and those it forks leave it to this one.

    Raises OSError if the system lets this process open too few files: the server would end in a traceback.
    """
    _open_at_once(_FILES + _FILES_EACH * count)
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    # begun here, as it would let go again what is held back below
    resource_tracker.ensure_running()
    # a process inherits what is held back; the server itself ignores Ctrl-C only once it has imported
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _open_at_once(count: int) -> None:
    """Raise OSError if so many more files cannot be open."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for one in opened:
            os.close(one)
