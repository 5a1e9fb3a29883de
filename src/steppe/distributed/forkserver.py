"""Worker processes that are forked from a server, which has already imported what they need."""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import process, resource_tracker, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steppe.errors import InputError, RunError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_FILES, _FILES_EACH = 32, 8  # files that the server opens while it imports, and files per process
_LONGEST = 64  # bytes of the folder for temporary files: a socket's path may have 103, of which 32 are names
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def forkserver_context(count: int, *preload: str) -> ForkServerContext:
    """Return a context for ``count`` worker processes, whose server imports the modules of ``preload`` once.

    Ctrl-C reaches all processes of a terminal: the server and its children leave it to this process.

    Raises:
        InputError: The calling script has no main guard, or the system has no such servers (Windows).
        OSError: The limit of open files is too low; the server itself would end in a traceback.
        RunError: No folder for temporary files has a path that is short enough for a socket.
    """
    if sys.platform == "win32":
        raise InputError("worker processes need Linux or macOS; on Windows use WSL, or train without workers")
    from multiprocessing import forkserver

    check_main_guard()
    with contextlib.ExitStack() as files:
        for _ in range(_FILES + _FILES_EACH * count):
            files.enter_context(open(os.devnull, "rb"))
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    _shorten_socket_paths()
    with without_working_folder():
        # started now, because starting it unblocks the signal that is blocked below
        resource_tracker.ensure_running()
        # children inherit the blocked signal; the server ignores Ctrl-C by itself only after its imports
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def kill_workers() -> None:
    """Kill the worker processes and their server, which may still be importing."""
    for worker in multiprocessing.active_children():
        worker.kill()
    server = sys.modules.get("multiprocessing.forkserver")
    if server is not None and server._forkserver._forkserver_pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server._forkserver._forkserver_pid, signal.SIGKILL)


@contextlib.contextmanager
def without_working_folder() -> Iterator[None]:
    """Start Python processes that do not import from the working folder, where a file may be named random.py."""
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _shorten_socket_paths() -> None:
    """Make this process and its children place their sockets in a folder whose path is short enough."""
    config: dict[str, Any] = cast(Any, process.current_process())._config
    folder = config.get("tempdir") or tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST:
        return
    short = next((path for path in _SHORT if os.access(path, os.W_OK | os.X_OK)), None)
    if short is None:
        raise RunError(
            f"TMPDIR is {folder}, too long for the sockets between processes; set it to a folder whose path has "
            f"at most {_LONGEST} characters"
        )
    before, tempfile.tempdir = tempfile.tempdir, short
    config.pop("tempdir", None)
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def check_main_guard() -> None:
    """Raise InputError if workers, which import the calling script, would start its work again."""
    main = sys.modules["__main__"]
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    frame = sys._getframe()
    while frame.f_globals is not vars(main) or frame.f_code.co_name != "<module>":
        if frame.f_back is None:  # called from another thread, or after the script has ended
            return
        frame = frame.f_back
    # multiprocessing does not import the __main__ of a package
    if path is None or (spec is not None and spec.name.endswith("__main__")):
        return
    try:
        script = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    begun = [statement for statement in script.body if statement.lineno <= frame.f_lineno]
    tests = [
        node.test for statement in begun for node in ast.walk(statement) if isinstance(node, ast.If | ast.IfExp)
    ]
    if not any(isinstance(n, ast.Name) and n.id == "__name__" for test in tests for n in ast.walk(test)):
        raise InputError(
            f"{path} starts worker processes, which import it again; put the code that does so below the line "
            "`if __name__ == '__main__':`"
        )
