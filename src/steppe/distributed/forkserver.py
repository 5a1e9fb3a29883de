"""Worker processes that are forked from a server, which has already imported what they need."""

from __future__ import annotations

import ast
import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from multiprocessing import process, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steppe.errors import InputError, RunError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_FILES, _FILES_EACH = 32, 8  # files that the server opens while it imports, and files per process
_LONGEST = 64  # bytes of the folder for temporary files: a socket's path may have 103, of which 32 are names


def forkserver_context(count: int, *preload: str) -> ForkServerContext:
    """Return a context for ``count`` worker processes, whose server imports the modules of ``preload`` once.

    Ctrl-C reaches all processes of a terminal: the server and its children leave it to this process.

    Raises:
        InputError: The calling script has no main guard, or the system has no such servers (Windows).
        OSError: The limit of open files is too low; the server itself would end in a traceback.
        RunError: TMPDIR is too long for a socket's path, and /tmp cannot be written.
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
    before = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ["PYTHONSAFEPATH"] = before  # an empty one counts as none


def _shorten_socket_paths() -> None:
    """Make this process and its children place their sockets in a folder whose path is short enough."""
    config: dict[str, Any] = cast(Any, process.current_process())._config
    folder = config.get("tempdir") or tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST:
        try:
            config["tempdir"] = tempfile.mkdtemp(prefix="steppe-", dir="/tmp")
        except OSError as error:
            raise RunError(
                f"TMPDIR {folder} is too long for sockets, and /tmp: {error}; set a shorter one"
            ) from None
        atexit.register(shutil.rmtree, config["tempdir"], ignore_errors=True)


def check_main_guard() -> None:
    """Raise InputError if workers, which import the calling script, cannot or would start its work again."""
    main = sys.modules["__main__"]
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if path is not None and spec is None and not os.path.isfile(path):
        raise InputError(
            f"{path} is no file, and worker processes import it; save the script to a file, or give 0 workers"
        )
    frames = (f for f, _ in traceback.walk_stack(None) if f.f_globals is vars(main))
    frame = next((f for f in frames if f.f_code.co_name == "<module>"), None)
    # multiprocessing does not import the __main__ of a package
    if path is None or frame is None or (spec is not None and spec.name.endswith("__main__")):
        return
    try:
        script = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    nodes = (n for statement in script.body if statement.lineno <= frame.f_lineno for n in ast.walk(statement))
    tests = (ast.dump(node.test) for node in nodes if isinstance(node, ast.If | ast.IfExp))
    if not any("id='__name__'" in test for test in tests):
        raise InputError(
            f"{path} starts worker processes, which import it again; put the code that does so below the line "
            "`if __name__ == '__main__':`"
        )
