"""Who writes where: the interpreter's own audit in this process, a listing of files around another one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# by audit event, the positions of the paths that it changes
_CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate"), (0,)),
    **dict.fromkeys(("os.chmod", "os.chown", "os.utime", "os.setxattr"), (0,)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
    "os.rename": (0, 1),
}
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "os.fork")


class Guard:
    """Writes to places that are not allowed, and programs that were started, as the interpreter reports them."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, *allowed: Path) -> Iterator[list[str]]:
        """Collect what is written anywhere but below these places."""
        self.events = []
        self.allowed = tuple(os.path.realpath(place) for place in allowed)
        try:
            yield self.events
        finally:
            self.allowed = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in "wax+" for c in mode) if isinstance(mode, str) else bool((flags or 0) & _WRITES)
            if writes:
                self._note(event, path)
        elif event in _RUNS:
            self.events.append(f"{event} {str(arguments)[:120]}")
        else:
            for position in _CHANGES.get(event, ()):
                self._note(event, arguments[position])

    def _note(self, event: str, path: Any) -> None:
        if isinstance(path, int) or self.allowed is None:  # a file that is open already
            return
        place = os.path.realpath(os.fsdecode(path))
        if place != os.devnull and not any(place == a or place.startswith(a + os.sep) for a in self.allowed):
            self.events.append(f"{event} {place}")


def listed(root: Path, *, but: tuple[Path, ...] = ()) -> dict[str, tuple[int, int]]:
    """Return size and time of everything below a folder, links not followed, except below some places."""
    states = {}
    skipped = {str(b) for b in but}
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if os.path.join(folder, f) not in skipped]
        for name in files:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            states[os.fsencode(path).decode("ascii", "backslashreplace")] = (state.st_size, state.st_mtime_ns)
    return states
