"""The campaign itself: its short form holds and catches what is planted, and the page says what was measured."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults import broken, table
from faults.__main__ import main, tried
from faults.command import ROOT, Ended, judged
from faults.outcome import Case, Row, caught, summed


@pytest.mark.slow
@pytest.mark.parametrize("name", table.ORDER)
def test_each_class_holds_and_catches_what_is_planted(name, capsys):
    code = main([name, "--short"])
    assert code == 0, capsys.readouterr().out


def test_every_defect_replaces_something_that_exists(monkeypatch):
    monkeypatch.setattr(broken, "setattr", lambda *_: None, raising=False)
    for name in broken.DEFECTS:
        broken.plant(name)


def test_the_page_is_that_of_the_rows():
    rows, together = table.read(ROOT / "docs")
    assert rows and (ROOT / "docs" / table.PAGE).read_text() == table.page(rows, together)
    for row in rows:
        assert row.holds == (not row.failures and all(v.startswith("caught") for v in row.planted.values()))


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (Ended(2, "steppe: error: batch is 0; give a number above 0\n"), "held"),
        (Ended(0, ""), "lost"),
        (Ended(1, "steppe: error: x\n"), "lost"),
        (Ended(2, "batch is 0\n"), "traceback"),
        (Ended(2, "steppe: error: x\nand more\n"), "traceback"),
        (Ended(2, "Traceback (most recent call last):\nValueError: x\n"), "traceback"),
        (Ended(-11, ""), "traceback"),
        (Ended(2, "steppe: error: x\n", ("open /etc/passwd",)), "outside"),
    ],
)
def test_a_command_holds_only_if_it_ends_as_promised(ended, verdict):
    assert judged("x", ended).verdict == verdict
    assert judged("x", Ended(2, "steppe: error: a\n"), says=("b",)).verdict == "lost"


GUARD = """
import os, sys
from pathlib import Path
from faults.guard import Guard
guard, here = Guard(), Path(sys.argv[1])
acts = {
    "open": lambda: (here / "x").write_text("x"),
    "os.mkdir": lambda: (here / "d").mkdir(),
    "os.symlink": lambda: (here / "l").symlink_to("x"),
    "os.truncate": lambda: os.truncate(here / "x", 0),
    "os.remove": lambda: (here / "x").unlink(),
    "os.system": lambda: os.system("true"),
}
for name, act in acts.items():
    with guard.watching(here / "allowed") as events:
        act()
    assert len(events) == 1 and events[0].startswith(name), (name, events)
(here / "allowed").mkdir()
with guard.watching(here / "allowed") as events:
    (here / "allowed" / "x").write_text("x")
    (here / "d" / "..").resolve().joinpath("allowed/x").read_text()
assert not events, events
(here / "allowed" / "out").symlink_to(here)
with guard.watching(here / "allowed") as events:
    (here / "allowed" / "out" / "z").write_text("x")
assert len(events) == 1, events
"""


def test_the_guard_reports_every_write_outside_and_every_program(tmp_path):
    """In a process of its own: an audit hook is never taken away again."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    subprocess.run([sys.executable, "-c", GUARD, tmp_path], env=os.environ | {"PYTHONPATH": paths}, check=True)


def test_a_row_holds_only_without_losses_and_with_every_defect_caught():
    good, bad = Case("a", "held"), Case("b", "lost", "why")
    row = summed("kills", "title", "command", [good, good], 1.0, 2.0)
    assert row.holds and row.cases == 2
    assert not summed("kills", "title", "command", [], 1.0, 2.0).holds
    lost = summed("kills", "title", "command", [good, bad], 1.0, 2.0)
    assert not lost.holds and lost.failures == ("lost: b: why",)
    assert caught([good, bad]) == "caught (lost 1 of 2)"
    assert caught([good]).startswith("MISSED")
    assert not Row(**{**dataclasses.asdict(row), "planted": {"x": caught([good])}}).holds
    assert Row.of(json.loads(json.dumps(dataclasses.asdict(lost)))) == lost
    absent = summed("kills", "title", "command", [good, Case("c", "not run", "why")], 1.0, 2.0)
    assert absent.holds and absent.cases == 1 and absent.missing == ("c: why",)
    assert "- c: why" in table.page([absent])
    assert not summed("kills", "title", "command", [Case("c", "not run", "why")], 1.0, 2.0).holds


def test_a_class_that_does_not_end_does_not_hold(monkeypatch):
    monkeypatch.setattr("faults.__main__.LIMIT", 0.01)
    cases, _ = tried("damage", 1)
    assert [case.verdict for case in cases] == ["traceback"]
    assert "no end within" in cases[0].detail


def test_rows_are_kept_by_name_in_order(tmp_path: Path):
    fuzz, kills = (summed(n, n, f"python -m faults {n}", [Case("a", "held")], 1.0, 2.0) for n in ("fuzz", "kills"))
    table.keep([fuzz], tmp_path)
    table.keep([kills], tmp_path, 90.0)
    assert [r.name for r in table.read(tmp_path)[0]] == ["kills", "fuzz"]
    page = (tmp_path / table.PAGE).read_text()
    assert page.count("| full | 1 | 0 | 0 | 0 | 1 | 2 | 0 of 0 |") == 2
    assert "All classes with their planted defects, in one command: 2 minutes" in page
