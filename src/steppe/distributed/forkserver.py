"""Worker processes that are forked from a server, which has already imported what they need."""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

_FILES, _FILES_EACH = 32, 8  # files that the server opens while it imports, and files per process


def forkserver_context(count: int, *preload: str) -> ForkServerContext:
    """Return a context for ``count`` worker processes, whose server imports the modules of ``preload`` once.

    Ctrl-C reaches all processes of a terminal: the server and its children leave it to this process.

    Raises OSError if the limit of open files is too low: the server itself would end in a traceback.
    """
    with contextlib.ExitStack() as files:
        for _ in range(_FILES + _FILES_EACH * count):
            files.enter_context(open(os.devnull, "rb"))
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    # started now, because starting it unblocks the signal that is blocked below
    resource_tracker.ensure_running()
    # children inherit the blocked signal; the server ignores Ctrl-C by itself only after its imports
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
