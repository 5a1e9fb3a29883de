"""The live report: whom the server answers, how the page follows the records, how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from support.browsing import Visit
from support.recorded import METHODS, Folder

from steppe.cli.main import main
from steppe.errors import InputError
from steppe.report.comparison import live


def write_running(path: Path) -> Folder:
    """Write a comparison whose last run is unfinished."""
    folder = Folder(path)
    for label in METHODS[:6]:
        folder.method(label)
        for seed in range(2):
            unfinished = (label, seed) == ("sam", 1)
            folder.run(label, seed, 0.9 + 0.01 * seed, "unfinished" if unfinished else "ok", epochs=6)
    folder.write()
    return folder


@contextmanager
def serving(path: Path) -> Iterator[Any]:
    with live.server(path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def running(tmp_path: Path) -> Folder:
    return write_running(tmp_path)


@pytest.fixture
def served(running: Folder) -> Iterator[Any]:
    with serving(running.path) as server:
        yield server


@pytest.fixture(scope="module")
def unchanging(tmp_path_factory: Any) -> Iterator[Any]:
    """Return a server of records that no test changes."""
    with serving(write_running(tmp_path_factory.mktemp("live")).path) as server:
        yield server


def request(server: Any, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, Any]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return content


def finish(folder: Folder) -> None:
    """Write the result of the unfinished run."""
    (run,) = [r for r in folder.compare["runs"] if (r["method"], r["seed"]) == ("sam", 1)]
    result = next(folder.path.glob("runs/*/result.json"))
    (folder.path / "runs" / run["digest"] / "result.json").write_text(result.read_text())


def test_the_page_and_its_version_follow_the_records(running: Folder, served: Any) -> None:
    files = sorted(running.path.rglob("*"))
    status, text, headers = request(served, "/")
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert "11 of 12 runs finished, 1 begun" in text
    assert "connect-src 'self'; base-uri" in text
    before = request(served, "/version")[1]
    assert f'data-version="{before}"' in text
    finish(running)
    after = request(served, "/version")[1]
    assert after != before
    text = request(served, "/report.html?x=1")[1]
    assert "12 of 12 runs finished." in text
    assert f'data-version="{after}"' in text
    # nothing is written
    assert len(sorted(running.path.rglob("*"))) == len(files) + 1
    # records that cannot be read leave the page as it is, and do not make it reload
    (running.path / "compare.json").write_text("{")
    assert request(served, "/")[:2] == (200, text)
    assert request(served, "/version")[1] == after


def test_only_requests_that_name_this_machine_are_answered(unchanging: Any) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", ""):
        status, body, _ = request(unchanging, "/", host)
        assert status == 403 and "digits" not in body
        assert request(unchanging, "/version", host)[0] == 403
    assert request(unchanging, "/version", f"localhost:{unchanging.server_port}")[0] == 200
    assert unchanging.server_address[0] == "127.0.0.1"


def test_nothing_but_the_report_is_served_and_only_read(unchanging: Any) -> None:
    for path in ("/compare.json", "/../compare.json", "/%2e%2e/compare.json", "/runs/", "//etc/passwd", "/x"):
        assert request(unchanging, path)[:2] == (404, "there is no such page\n")
    assert request(unchanging, "/report.html/")[0] == 404
    assert request(unchanging, "/", method="POST")[0] == 501
    status, body, headers = request(unchanging, "/", method="HEAD")
    assert (status, body) == (200, "") and int(headers["Content-Length"]) > 10_000


def test_the_diagnosis_is_served_once_there_is_one(running: Folder, served: Any) -> None:
    assert request(served, "/diagnosis.html")[0] == 404
    assert 'href="diagnosis.html"' not in request(served, "/")[1]
    (running.path / "diagnosis.html").write_text("flat")
    assert request(served, "/diagnosis.html")[:2] == (200, "flat")
    assert 'href="diagnosis.html"' in request(served, "/")[1]


def test_a_port_or_folder_that_cannot_be_served_is_refused(running: Folder, tmp_path_factory: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port is {port} and is in use; give another"):
            live.server(running.path, port)
    with pytest.raises(InputError, match="port is 70000; give a number from 1 to 65535"):
        live.server(running.path, 70000)
    with pytest.raises(InputError, match=r"no compare\.json"):
        live.server(tmp_path_factory.mktemp("empty"))
    assert main(["report", str(running.path), "--port", "8123"]) == 2


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(running: Folder) -> None:
    command = [sys.executable, "-m", "steppe", "report", "--live", str(running.path)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
    port = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())  # type: ignore[union-attr]
    assert port
    connection = HTTPConnection("127.0.0.1", int(port[1]), timeout=120)
    connection.request("GET", "/version")
    assert connection.getresponse().status == 200
    connection.close()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert message == f"steppe: stopped; go on with: steppe report --live {running.path}\n"


def test_the_page_follows_and_keeps_the_readers_choices_and_place(browser: Any, running: Folder) -> None:
    with serving(running.path) as server:
        address = live.address(server)
        visit = Visit(browser, address, viewport={"width": 1280, "height": 700}, reduced_motion="reduce")
        page = visit.page
        assert "11 of 12 runs finished" in page.locator(".progress").inner_text()
        page.locator('.mode:not([hidden]) th[data-key="method"] button').click()
        visit.compare("gradients")
        page.locator('input[data-name="y"][value="val_loss"]').check()
        page.locator("[data-late]").check()
        page.locator(".key li button").nth(2).press("Enter")
        page.locator(".curves .chart").focus()
        for key in ("End", "ArrowLeft", "ArrowDown"):
            page.keyboard.press(key)
        (reading,) = re.findall(r"^Gradient evaluations: \d+\. \S+: ", page.locator(".readout").inner_text())
        page.evaluate("document.querySelector('#curves').scrollIntoView({behavior: 'instant'})")
        top = page.evaluate("scrollY")
        finish(running)
        page.locator(".progress", has_text="12 of 12").wait_for(timeout=90_000)
        assert page.evaluate("scrollY") == pytest.approx(top, abs=60)
        assert page.evaluate("document.activeElement.matches('.chart')")
        assert page.locator(".readout").inner_text().startswith(reading)
        assert visit.column("method") == sorted(METHODS[:6])
        assert page.locator(".mode:not([hidden])").get_attribute("data-mode") == "gradients"
        assert page.locator('input[data-name="y"]:checked').get_attribute("value") == "val_loss"
        assert page.locator("[data-late]").is_checked()
        assert page.locator(".key li button").nth(2).get_attribute("aria-pressed") == "false"
        assert page.locator(".curves .chart path.curve").count() == 5
        assert visit.messages == []
        assert all(url.startswith(address) for url in visit.requests)
        assert not page.locator(".live").is_visible()
    # the page stays when the server has gone
    page.locator(".live").get_by_text("The server no longer answers").wait_for(timeout=90_000)
    visit.context.close()
