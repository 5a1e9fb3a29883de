"""The command ``steppe conformance``: output, files, exit codes, errors."""

import json
import sys

import pytest

from steppe.cli.main import main
from steppe.testing import CHECKS

OWN = """
from dataclasses import dataclass
import steppe

@dataclass(frozen=True)
class Mine(steppe.SAM):
    pass

@dataclass(frozen=True)
class Forgetful(steppe.Method):
    rate: float
    def step(self, batch, state, rt):
        out, g = rt.grad(batch)
        out, g = rt.grad(batch)
        rt.apply(g)
        return out

class Neither:
    pass
"""
FAST = ["--checks", "passes", "batch-norm", "restored"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's module."""
    (tmp_path / "own_methods.py").write_text(OWN)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "random.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_methods", None)


def test_all_green_is_exit_code_0(folder, capsys):
    names = ["plain", "sam:rho=0.1", "own_methods:Mine", "own_methods:Mine:rho=0.2"]
    assert main(["conformance", *names, *FAST]) == 0
    out = capsys.readouterr().out
    assert "own_methods:Mine:rho=0.2: 3 passed, 0 failed, 0 not applicable" in out
    assert "12 passed, 0 failed, 0 not applicable" in out
    assert "FAIL" not in out and "[" not in out  # no markup is printed


def test_a_failure_is_exit_code_1_and_shows_what_was_measured(folder, capsys):
    assert main(["conformance", "sam", "own_methods:Forgetful:rate=1", *FAST]) == 1
    out = capsys.readouterr().out
    assert "FAIL: batch-norm: 1.num_batches_tracked is 2 after one step (own_methods:Forgetful:rate=1)" in out
    assert "n/a: passes: declares no cost; counted 2 forward" in out


def test_a_method_may_be_named_by_its_file(folder, capsys):
    assert main(["conformance", str(folder / "own_methods.py:Mine"), "own_methods.py:Mine", *FAST]) == 0
    assert "own_methods.py:Mine: 3 passed" in capsys.readouterr().out


def test_only_json_is_printed(folder, capsys):
    assert main(["conformance", "sam", "--json", *FAST]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [r["check"] for r in read["results"]] == FAST[1:]
    assert {r["status"] for r in read["results"]} == {"pass"}
    assert {"steppe", "torch", "python"} <= set(read["versions"])


def test_markdown_is_written_and_replaced_in_place(folder, capsys):
    command = ["conformance", "own_methods:Forgetful:rate=1", *FAST, "--markdown", "docs/table.md"]
    assert main(command) == 1
    first = (folder / "docs/table.md").read_text()
    assert "| batch-norm | **FAIL** |" in first
    assert CHECKS["batch-norm"].consequence in first
    assert "`steppe conformance own_methods:Forgetful:rate=1 --checks passes" in first
    (folder / "docs/table.md").write_text(first + "\nWritten by hand.\n")
    assert main(command) == 1
    assert (folder / "docs/table.md").read_text() == first + "\nWritten by hand.\n"
    assert main(["conformance", "sam", *FAST, "--markdown", "docs/table.md"]) == 0
    assert "Written by hand.\n\n<!-- made by: steppe conformance sam" in (folder / "docs/table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sum", "unknown method 'sum'; did you mean 'sam'"),
        ("sam:rho=-1", "rho is -1; give a number of at least 0"),
        ("sam --checks clip", "unknown check 'clip'; did you mean 'clip-once'?"),
        ("sam --device tpu", "device is 'tpu'; choose one of cpu, cuda"),
        ("no_such_module:Mine", "there is no module no_such_module here or installed; give a name"),
        ("broken_module:Mine", "broken_module cannot be imported: ZeroDivisionError"),
        ("nowhere.py:Mine", "there is no file nowhere.py; give the path of one, or module:name"),
        ("random.py:Mine", "random.py has the name of another module, random; rename the file"),
        ("own_methods.py:Mime", "unknown name in own_methods.py 'Mime'; did you mean 'Mine'"),
        ("own_methods:Mime", "unknown name in own_methods 'Mime'; did you mean 'Mine'"),
        ("own_methods:Neither", "own_methods:Neither is neither a steppe.Method nor an optimizer; give a class"),
        ("own_methods:Forgetful", "own_methods:Forgetful cannot be made"),
        ("own_methods:Mine:roh=1", "unknown setting of Mine 'roh'; did you mean 'rho'"),
        ("support.thirdparties:NeedsMore", "support.thirdparties:NeedsMore cannot be made from (params"),
        ("sam --markdown .", "markdown is '.', a folder; give a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, folder, capsys):
    assert main(["conformance", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("steppe: error: ")
    assert error.count("\n") == 1
    assert message in error
