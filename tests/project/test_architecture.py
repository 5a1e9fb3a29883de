"""The shape of the package, checked: what a method may import, how long a file may be, what a card holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import steppe
from steppe.methods import METHODS, card

SOURCE = Path(steppe.__file__).parent
METHOD_FILES = sorted(p for p in (SOURCE / "methods").glob("*/*.py") if not p.name.startswith("_"))
FORBIDDEN = (
    "torch.distributed",
    "torch.amp",
    "torch.optim",
    "steppe.training.run",
    "steppe.data",
    "steppe.methods",
)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda p: p.stem)
def test_a_method_knows_no_optimizer_no_device_and_no_other_method(path):
    wrong = {name for name in imported(path) for no in FORBIDDEN if name == no or name.startswith(no + ".")}
    assert not {name for name in wrong if "._" not in name}  # a private module is its family's own


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_no_method_is_treated_by_name_and_no_file_is_too_long(path):
    text = path.read_text()
    names = {f'"{name}"' for name in METHODS if name != "plain"}
    if path.parent.name not in ("config", "methods"):
        assert not [n for n in names if f"== {n}" in text or f"in ({n}" in text]
    assert len(text.splitlines()) <= 420


@pytest.mark.parametrize("name", list(METHODS))
def test_every_card_has_its_parts(name):
    text = card(name)
    for part in ("Paper", "Code", "Cost", "Limits", "Differs", "Start"):
        assert f"\n{part} " in text, part


def test_the_library_needs_only_torch_and_numpy():
    """Everything else is imported where it is used."""
    code = (
        "import sys, steppe; heavy = {'matplotlib', 'sklearn', 'scipy', 'rich', 'jsonargparse', 'PIL', 'jinja2'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_training_on_the_digits_imports_no_package_that_takes_a_second(tmp_path):
    """Every run of a comparison is a process of its own, and would wait for it again."""
    code = (
        "import sys; from steppe.cli.main import main; code = main([*sys.argv[1].split(), sys.argv[2]]);"
        "print(code, sorted({'sklearn', 'scipy.stats', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    words = "train --epochs 1 --data.train 60 --data.test 20 --data.val 20 --data.size 18 --batch 20 --out"
    done = subprocess.run([sys.executable, "-c", code, words, tmp_path], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr


def test_reports_are_read_without_torch_in_their_imports():
    for path in [p for folder in ("report", "records", "config") for p in (SOURCE / folder).rglob("*.py")]:
        assert not {n for n in imported(path) if n == "torch" or n.startswith("torch.")}
