"""A report that follows the runs: a page on this machine alone, rendered again when the records change."""

import errno
import hashlib
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from steppe.errors import InputError, RunError
from steppe.records import load
from steppe.report.comparison import page
from steppe.report.comparison.summary import rows

HOST = "127.0.0.1"
_HTML, _TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"


class Pages:
    """The page of a comparison's folder and its version. Nothing is written.

    Records that cannot be read at the moment leave page and version as they were.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._current = ("", "")
        self.current()

    def current(self) -> tuple[str, str]:
        """Return the version, which changes whenever a file of the records does, and the page.

        Raises:
            InputError: The folder is not that of a comparison, or was damaged from the start.
        """
        with self._lock:
            version = self._state()
            if version != self._current[0]:
                try:
                    comparison = load(self.folder)
                    self._current = (version, page.html(comparison, rows(comparison), version))
                except (InputError, RunError):
                    if not self._current[0]:
                        raise
            return self._current

    def diagnosis(self) -> str | None:
        """Return the page of the diagnosis, if there is one."""
        path = self.folder / page.DIAGNOSIS
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _state(self) -> str:
        digest = hashlib.sha256()
        names = ("compare.json", "runs/*/*.json*", page.DIAGNOSIS)
        for path in sorted(path for name in names for path in self.folder.glob(name)):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a comparison's report on the loopback address; port 0 is any free one.

    It serves the page, its version and the diagnosis. It refuses a request whose Host header is not this machine:
    a foreign web page could otherwise read the report through the reader's browser (DNS rebinding).

    Raises:
        InputError: The folder is not that of a comparison, or the port is invalid, in use or not allowed.
    """
    if not 0 <= port < 65536:
        raise InputError(f"port is {port}; give a number from 1 to 65535, or 0 for any that is free")
    pages = Pages(folder)
    routes: dict[str, tuple[Callable[[], str | None], str]] = {
        "/": (lambda: pages.current()[1], _HTML),
        "/report.html": (lambda: pages.current()[1], _HTML),
        "/version": (lambda: pages.current()[0], _TEXT),
        f"/{page.DIAGNOSIS}": (pages.diagnosis, _HTML),
    }

    class Handler(BaseHTTPRequestHandler):
        """Answers the routes above and nothing else."""

        def do_GET(self) -> None:
            """Send one of the pages."""
            if self.headers.get("Host") not in hosts:
                self._send(HTTPStatus.FORBIDDEN, f"this report is served at {address(http)} only\n", _TEXT)
                return
            content, kind = routes.get(self.path.partition("?")[0], (lambda: None, ""))
            text = content()
            if text is None:
                self._send(HTTPStatus.NOT_FOUND, "there is no such page\n", _TEXT)
            else:
                self._send(HTTPStatus.OK, text, kind)

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
            """Print nothing for each request."""

    try:
        http = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"port is {port} and {reason}; give another, or none for any that is free") from error
    hosts = {f"{name}:{http.server_port}" for name in (HOST, "localhost")}
    return http


def address(http: ThreadingHTTPServer) -> str:
    """Return the server's address."""
    return f"http://{HOST}:{http.server_port}/"


def serve(folder: Path, port: int, progress: Callable[[str], None]) -> None:
    """Serve a comparison's report until interrupted; ``progress`` is called with its address.

    Raises:
        InputError: As ``server`` does.
    """
    with server(folder, port) as http:
        progress(address(http))
        http.serve_forever()
