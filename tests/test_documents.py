"""What the documents say, done: their code runs, their tables name what there is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steppe import models
from steppe.methods import METHODS, parse, row

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("block", blocks("README.md"))
def test_the_readme_s_code_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert "Passes(" in capsys.readouterr().out


def test_the_readme_names_every_method_and_model():
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) == set(METHODS)
    assert all(f"`{name}`" in text for name in models.names())


def test_the_methods_pages_are_those_of_their_cards():
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "docs/make_methods.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    held = {path.name: path.read_text() for path in (ROOT / "docs/methods").glob("*.md")}
    assert held == maker.pages(), "run `make docs`"


def test_what_is_listed_as_tried_has_a_row_in_the_results():
    text = "\n".join(path.read_text() for path in (ROOT / "docs/results").glob("*.md"))
    rows = set(re.findall(r"^\| ([a-z0-9-]+)(?::[^ ]*)? \|", text, re.MULTILINE))
    assert {name for name in METHODS if row(name).status == "tried"} == rows & set(METHODS)


def test_contributing_shows_the_method_that_is_there():
    shown = blocks("CONTRIBUTING.md")[0]
    held = (ROOT / "src/steppe/methods/random_sam.py").read_text()
    card, code = held.split("from __future__")[0], held[held.index("@dataclass") :]
    assert [line for line in shown.splitlines() if line] == [line for line in (card + code).splitlines() if line]
    assert len(held.splitlines()) < 50
    restated = blocks("CONTRIBUTING.md")[1]
    references = (ROOT / "src/steppe/testing/references.py").read_text()
    assert restated in references
    entry = re.search(r"below it, `(.*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert entry and entry[1] in references


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)


def test_slow_tests_are_listed():
    listed = (ROOT / "CONTRIBUTING.md").read_text()
    for test in (ROOT / "tests").rglob("test_*.py"):
        if test.name != Path(__file__).name and "mark.slow" in test.read_text():
            assert f"`{test.relative_to(ROOT)}`" in listed


def test_the_guide_to_loops_runs_from_top_to_bottom(capsys):
    names: dict[str, object] = {}
    for block in blocks("docs/how-to/loops.md"):
        exec(compile(block, "loops.md", "exec"), names)
    assert capsys.readouterr().out == "False 65536.0\n"
    assert names["out"].skipped is False


def test_the_guide_s_commands_are_methods():
    text = (ROOT / "docs/how-to/loops.md").read_text()
    for spec in re.findall(r"`(sam:[^`]+)`", text):
        parse(spec)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_every_example_runs_and_is_short(path):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *(start if "torchrun" in path.name else []), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Passes(") == 1
    assert len(path.read_text().splitlines()) < 60
