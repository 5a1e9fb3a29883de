"""The report while runs go on: who is answered, what follows the records, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from support.browsing import Visit, chromium
from support.recorded import METHODS, Folder

from steppe.cli.main import main
from steppe.errors import InputError
from steppe.records import load
from steppe.report.comparison import live, page, summary


@pytest.fixture
def under_way(folder: Any) -> Any:
    """Return a folder whose last run is unfinished, written."""
    for label in METHODS[:6]:
        folder.method(label)
        for seed in range(2):
            unfinished = (label, seed) == ("sam", 1)
            folder.run(label, seed, 0.9 + 0.01 * seed, "unfinished" if unfinished else "ok", epochs=6)
    folder.write()
    return folder


@pytest.fixture
def served(under_way: Any) -> Iterator[Any]:
    with live.server(under_way.path) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(made: Any, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, Any]:
    connection = HTTPConnection("127.0.0.1", made.server_port, timeout=120)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{made.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def finish(folder: Any) -> None:
    """Write what the engine writes when the unfinished run ends."""
    runs = [r for r in folder.compare["runs"] if (r["method"], r["seed"]) == ("sam", 1)]
    home = folder.path / "runs" / runs[0]["digest"]
    pattern = next(p for p in folder.path.glob("runs/*/result.json"))
    (home / "result.json").write_text(pattern.read_text())


def test_the_page_and_its_version_follow_the_records(under_way: Any, served: Any) -> None:
    status, shown, headers = ask(served, "/")
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert "11 of 12 runs finished, 1 begun" in shown
    before = ask(served, "/version")[1]
    assert f'data-version="{before}"' in shown
    assert ask(served, "/version")[1] == before
    finish(under_way)
    after = ask(served, "/version")[1]
    assert after != before
    shown = ask(served, "/report.html?x=1")[1]
    assert "12 of 12 runs finished." in shown
    assert f'data-version="{after}"' in shown


def test_nothing_is_written(under_way: Any, served: Any) -> None:
    before = sorted(under_way.path.rglob("*"))
    assert ask(served, "/")[0] == 200
    assert sorted(under_way.path.rglob("*")) == before


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", ""])
def test_a_request_that_names_another_host_is_refused(served: Any, host: str) -> None:
    status, body, _ = ask(served, "/", host)
    assert status == 403
    assert "digits" not in body
    assert ask(served, "/version", host)[0] == 403


def test_this_machine_may_be_called_localhost(served: Any) -> None:
    assert ask(served, "/version", f"localhost:{served.server_port}")[0] == 200


def test_only_this_machine_can_connect(served: Any) -> None:
    assert served.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    ["/compare.json", "/../compare.json", "/%2e%2e/compare.json", "/runs/", "//etc/passwd", "/report.html/", "/x"],
)
def test_nothing_but_the_report_is_served(under_way: Any, served: Any, path: str) -> None:
    status, body, _ = ask(served, path)
    assert (status, body) == (404, "there is no such page\n")


def test_the_diagnosis_is_served_where_there_is_one(under_way: Any, served: Any) -> None:
    assert ask(served, "/diagnosis.html")[0] == 404
    assert 'href="diagnosis.html"' not in ask(served, "/")[1]
    (under_way.path / "diagnosis.html").write_text("flat")
    assert ask(served, "/diagnosis.html")[:2] == (200, "flat")
    assert 'href="diagnosis.html"' in ask(served, "/")[1]


def test_a_request_can_only_read(served: Any) -> None:
    assert ask(served, "/", method="POST")[0] == 501
    status, body, headers = ask(served, "/", method="HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 10_000


def test_only_the_live_page_may_ask_its_server(under_way: Any, served: Any) -> None:
    policy = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')
    comparison = load(under_way.path)
    alone = page.html(comparison, summary.rows(comparison), {})
    following, still = policy.search(ask(served, "/")[1]), policy.search(alone)
    assert following
    assert still
    assert "connect-src 'self'" in following[1]
    assert "connect-src" not in still[1]


def test_records_that_cannot_be_read_leave_the_page_as_it_was(under_way: Any, served: Any) -> None:
    assert "11 of 12" in ask(served, "/")[1]
    (under_way.path / "compare.json").write_text("{")
    status, shown, _ = ask(served, "/")
    assert status == 200
    assert "11 of 12" in shown


def test_a_port_that_is_taken_is_named(under_way: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port is {port} and is taken; give another"):
            live.server(under_way.path, port)
    with pytest.raises(InputError, match="port is 70000; give a number from 1 to 65535"):
        live.server(under_way.path, 70000)


def test_a_folder_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no compare\.json"):
        live.server(tmp_path)


def test_the_command_serves_until_it_is_stopped(under_way: Any, capsys: Any) -> None:
    command = [sys.executable, "-m", "steppe", "report", "--live", str(under_way.path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
    port = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
    assert port, process.stderr.read()
    connection = HTTPConnection("127.0.0.1", int(port[1]), timeout=120)
    connection.request("GET", "/version")
    assert connection.getresponse().status == 200
    connection.close()
    assert main(["report", "--live", str(under_way.path), "--port", port[1]]) == 2
    assert capsys.readouterr().err.startswith(f"steppe: error: port is {port[1]} and is taken")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == f"steppe: stopped; go on with: steppe report --live {under_way.path}\n"


def test_a_port_without_live_is_refused(under_way: Any) -> None:
    assert main(["report", str(under_way.path), "--port", "8123"]) == 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


PLACE = "document.querySelector('#cost').getBoundingClientRect().top"
FOCUS = "document.activeElement.textContent"


def test_the_page_follows_without_losing_the_readers_place(browser: Any, under_way: Any, served: Any) -> None:
    at = live.address(served)
    # a scroll that is still under way would go on after its place was noted
    visit = Visit(browser, at, viewport={"width": 1280, "height": 700}, reduced_motion="reduce")
    seen = visit.page
    progress = seen.locator(".progress")
    assert "11 of 12 runs finished" in progress.inner_text()
    seen.locator('.mode:not([hidden]) th[data-key="method"] button').click()
    visit.compare("gradients")
    seen.locator('input[data-name="y"][value="val_loss"]').check()
    seen.locator("[data-late]").check()
    seen.locator(".key li button").nth(2).press("Enter")
    seen.locator('input[data-name="cost"][value="seconds"]').check()
    focused = seen.locator('.mode:not([hidden]) th[data-key="val"] button')
    focused.focus()
    seen.evaluate("document.querySelector('#cost').scrollIntoView({behavior: 'instant'})")
    where, focus = seen.evaluate(PLACE), seen.evaluate(FOCUS)
    finish(under_way)
    seen.locator(".progress", has_text="12 of 12").wait_for(timeout=90_000)
    assert seen.evaluate(PLACE) == pytest.approx(where, abs=1)
    assert seen.evaluate(FOCUS) == focus
    assert visit.column("method") == sorted(METHODS[:6])
    assert seen.locator(".mode:not([hidden])").get_attribute("data-mode") == "gradients"
    assert seen.locator('input[data-name="y"]:checked').get_attribute("value") == "val_loss"
    assert seen.locator('input[data-name="cost"]:checked').get_attribute("value") == "seconds"
    assert seen.locator("[data-late]").is_checked()
    assert seen.locator(".key li button").nth(2).get_attribute("aria-pressed") == "false"
    assert seen.locator(".curves .chart path.curve").count() == 5
    assert [cell for cell in visit.column("seeds") if cell != "n=2"] == []
    # what was replaced works as before
    focused.press("Enter")
    values = [float(v.split()[0]) for v in visit.column("val")]
    assert values == sorted(values, reverse=True)
    # so does a chart that is being read
    seen.locator(".curves .chart").focus()
    for key in ("End", "ArrowLeft", "ArrowDown"):
        seen.keyboard.press(key)
    reading = seen.locator(".readout").inner_text()
    assert re.search(r"\d+\. \S+: \d", reading)
    version = seen.locator("html").get_attribute("data-version")
    os.utime(under_way.path / "compare.json")
    seen.locator(f'html:not([data-version="{version}"])').wait_for(timeout=90_000)
    assert seen.locator(".readout").inner_text() == reading
    assert seen.evaluate("document.activeElement.matches('.chart')")
    assert all(asked.startswith(at) for asked in visit.asked)
    assert visit.said == []
    visit.context.close()


def test_the_page_says_when_the_server_has_gone(browser: Any, under_way: Any) -> None:
    made = live.server(under_way.path)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    visit = Visit(browser, live.address(made))
    assert not visit.page.locator(".live").is_visible()
    made.shutdown()
    made.server_close()
    thread.join()
    visit.page.locator(".live").get_by_text("The server no longer answers").wait_for(timeout=90_000)
    visit.context.close()


def test_a_large_comparison_opens_fast_and_stays_small(browser: Any, tmp_path: Path) -> None:
    """33 methods, 10 seeds and 200 epochs: the most that the issue asks for."""
    folder = Folder(tmp_path)
    for i in range(33):
        folder.method("plain" if i == 0 else f"method-{i}")
        for seed in range(10):
            folder.run(
                "plain" if i == 0 else f"method-{i}", seed, 0.9 + 0.001 * (i % 7) + 0.002 * seed, epochs=200
            )
    comparison = load(folder.write())
    table = summary.rows(comparison)
    text = page.html(comparison, table, page.files(comparison, table))
    assert len(text.encode()) < 3_000_000
    (tmp_path / "report.html").write_text(text)
    visit = Visit(browser, f"file://{tmp_path}/report.html")
    session = visit.context.new_cdp_session(visit.page)
    # the processor's seconds, whatever else the machine does
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    visit.page.reload()
    spent = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 3
    assert visit.page.locator(".curves .chart path.curve").count() == 33
    assert visit.said == []
    visit.context.close()
