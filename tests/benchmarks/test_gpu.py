"""``make gpu``: what it needs, its limits of time and its table; tests/gpu has the checks that it runs."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu import packages, steps, table
from benchmarks.gpu.__main__ import main

ABOUT = {"command": "make gpu", "device": "a GPU", "torch": "2", "python": "3", "date": "today", "cuda": "13"}
OPTIONS = ["--device", "cpu", "--checks", "0", "--speed", "0"]


def test_the_table_has_ours_over_the_loop_by_hand_and_replaces_the_one_before(tmp_path: Path) -> None:
    rows = [
        {"group": "checks", "row": "checks", "text": "9 passed"},
        {"group": "steps", "row": "sam", "column": "by hand", "value": 2.0},
        {"group": "steps", "row": "sam", "column": "ours", "value": 3.0},
        {"group": "steps", "row": "saf", "column": "ours", "value": 1.0},
        {"group": "runs", "row": "one run", "value": 5e4, "unit": "images/s"},
        {"group": "graph", "row": "saf", "column": "graph", "error": "needs the host"},
    ]
    document = tmp_path / "page.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):
        table.write(document, table.render(rows, ABOUT))
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "| step | by hand | ours | over |" in text
        and "| sam | 2 | 3 | 1.50 |" in text
        and "| saf |  | 1 |  |" in text
    )
    assert "Checks: 9 passed." in text and "50,000 images/s" in text
    assert "- saf, graph: needs the host" in text
    document.write_text("without markers")
    with pytest.raises(ValueError, match="has no"):
        table.write(document, "")


def test_a_measurement_that_fails_or_has_no_time_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> float:
        raise RuntimeError("out of\nmemory")

    items = [("sam", "ours", lambda: 1.5), ("sam", "graph", fail)]
    steps.measure(iter(items), time.time() + 60)
    steps.measure(iter(items), time.time() - 1)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r.get("value", r.get("error")) for r in rows] == [
        1.5,
        "RuntimeError: out of memory",
        "no time was left, nor for what follows",
    ]


def test_packages_that_are_missing_are_named_with_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    assert main([*OPTIONS, *out]) == 0 and (tmp_path / "results.jsonl").exists()
    assert (
        "pytest" in packages.required() and {"rich", "jsonargparse", "cloudpickle"} <= packages.optional().keys()
    )
    wheels = [*OPTIONS, *out, "--wheels", str(tmp_path)]
    monkeypatch.setattr(packages, "optional", lambda: {"rich": "no_such_module"})
    assert main(wheels) == 0  # it goes on without
    line = capsys.readouterr().out
    assert "goes on without rich" in line and "-d wheels rich markdown-it-py mdurl pygments" in line
    monkeypatch.setattr(packages, "required", lambda: {"torch": "torch", "pytest": "no_such_module"})
    assert main(wheels) == 2
    assert "error: pytest not installed" in capsys.readouterr().err
