"""The report while runs go on: a page on this machine alone that follows the records as they are written."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from steppe.errors import InputError, RunError
from steppe.records import Comparison, load
from steppe.report.comparison import page
from steppe.report.comparison.summary import rows

HOST = "127.0.0.1"
_HTML, _TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"


class Pages:
    """What the server shows of a comparison's folder: its page, made anew when the records have changed.

    Nothing is written. Records that cannot be read at the moment leave the page as it was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._version = ""
        self._page = ""
        self.page()

    def version(self) -> str:
        """Return a name of the present state of the records, another one whenever a file of theirs changes."""
        digest = hashlib.sha256()
        for path in sorted([self.folder / "compare.json", *self.folder.glob("runs/*/*.json*"), self._diagnosis]):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def page(self) -> str:
        """Return the page of the present state.

        Raises:
            InputError: The folder is not that of a comparison, or is damaged, and was so from the start.
        """
        with self._lock:
            version = self.version()
            if version != self._version:
                try:
                    comparison = load(self.folder)
                    table = rows(comparison)
                    live = page.Live(version, _progress(comparison))
                    self._page = page.html(comparison, table, page.files(comparison, table), live)
                    self._version = version
                except (InputError, RunError):
                    if not self._page:
                        raise
            return self._page

    def diagnosis(self) -> str | None:
        """Return the page of the diagnosis, if there is one."""
        return self._diagnosis.read_text(encoding="utf-8") if self._diagnosis.is_file() else None

    @property
    def _diagnosis(self) -> Path:
        return self.folder / page.DIAGNOSIS


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a comparison's report on the loopback address; port 0 is any free one.

    It answers requests for the page, its state and the diagnosis, and only such as name this machine: a request
    whose Host header names another is how a foreign web page reaches a server on the reader's own machine.

    Raises:
        InputError: The folder is not that of a comparison, or the port is no port, is taken or not allowed.
    """
    if not 0 <= port < 65536:
        raise InputError(f"port is {port}; give a number from 1 to 65535, or 0 for any that is free")
    pages = Pages(folder)
    shown: dict[str, tuple[Callable[[], str | None], str]] = {
        "/": (pages.page, _HTML),
        "/report.html": (pages.page, _HTML),
        "/version": (pages.version, _TEXT),
        f"/{page.DIAGNOSIS}": (pages.diagnosis, _HTML),
    }

    class Handler(BaseHTTPRequestHandler):
        """Answers what is listed above and nothing else."""

        def do_GET(self) -> None:
            """Send one of the pages."""
            if self.headers.get("Host") not in hosts:
                self._send(HTTPStatus.FORBIDDEN, f"this report is read at {address(made)} only\n", _TEXT)
                return
            what, kind = shown.get(self.path.partition("?")[0], (None, ""))
            content = what() if what else None
            if content is None:
                self._send(HTTPStatus.NOT_FOUND, "there is no such page\n", _TEXT)
            else:
                self._send(HTTPStatus.OK, content, kind)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def _send(self, status: HTTPStatus, content: str, kind: str) -> None:
            body = content.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of each request."""

    try:
        made = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"port is {port} and {reason}; give another, or none for any that is free") from error
    hosts = {f"{name}:{made.server_port}" for name in (HOST, "localhost")}
    return made


def address(made: ThreadingHTTPServer) -> str:
    """Return where the server is reached."""
    return f"http://{HOST}:{made.server_port}/"


def serve(folder: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve a comparison's report until interrupted; ``tell`` hears its address. Raises what ``server`` raises."""
    with server(folder, port) as made:
        tell(address(made))
        made.serve_forever()


def _progress(comparison: Comparison) -> str:
    statuses = [r.status for r in comparison.records]
    parts = [f"{statuses.count('ok')} of {len(statuses)} runs finished"]
    parts += [f"{statuses.count('failed')} failed"] if "failed" in statuses else []
    under_way = sum(r.status == "unfinished" and bool(r.metrics) for r in comparison.records)
    parts += [f"{under_way} begun"] if under_way else []
    return f"{', '.join(parts)}. This page follows the runs by itself."
