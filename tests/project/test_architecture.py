"""The rules of the package's layout: folders, names, lengths, imports, cards, style."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

import steppe
from steppe.methods import METHODS, card

SOURCE = Path(steppe.__file__).parent
ROOT = SOURCE.parents[1]
TREES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
LONGEST = 420
NOT_FOR_METHODS = (
    "torch.distributed", "torch.amp", "torch.optim", "steppe.training", "steppe.data", "steppe.methods",
)  # fmt: skip
ONE_IMPORTER = {  # public modules that only one module of the package imports, and why they stay public
    "analysis.*": "functions of saved runs, documented",
    "bench.*": "one measurement each",
    "cli.main": "the entry point",
    "cli.help_text": "texts",
    "cli.commands.*": "one command each",
    "core.state.*": "what methods keep between steps",
    "data.prefetch": "documented",
    "data.transforms.*": "augmentation by kind, and its registry",
    "diagnostics.*": "functions of one model and data, documented",
    "distributed.process_group": "how a process joins torchrun's job",
    "experiments.launchers.*": "one launcher each",
    "experiments.recipe_scaling": "where one looks for a recipe's scale",
    "experiments.tuning.*": "the stages of a search",
    "models.*": "one architecture each",
    "report.*": "one part of a page each",
    "testing.*": "the conformance checks by topic",
    "training.dry_run": "the stages of a run",
    "training.export": "the stages of a run",
}


def name_of(path: Path) -> str:
    return ".".join(("steppe", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Return the modules and names that a file imports."""
    names = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_folders_are_small_and_files_short_and_named_after_their_content():
    folders = defaultdict(list)
    for path in (p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        folders[path.parent].append(path.name)
    assert len([name for name in folders[SOURCE] if name.endswith(".py")]) <= 4
    assert not {f"{folder}: {len(names)} files" for folder, names in folders.items() if len(names) > 15}
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in TREES if path.stem.strip("_") in vague]
    assert not [path for path in TREES if len(path.read_text().splitlines()) > LONGEST]


def test_public_classes_have_names_of_their_own():
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name_of(path))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_a_module_with_one_importer_is_private():
    """The __init__ of a package above it does not count: what that imports is public."""
    importers = defaultdict(set)
    for path in TREES:
        for name in imported(path):
            importers[name].add(name_of(path))
    lonely = []
    for path in TREES:
        name = name_of(path)
        if len(importers[name]) == 1 and not path.name.startswith("_"):
            (importer,) = importers[name]
            if not name.startswith(f"{importer}."):
                lonely.append(name.removeprefix("steppe."))
    assert not [name for name in lonely if not any(fnmatch(name, pattern) for pattern in ONE_IMPORTER)]


def test_a_method_imports_no_optimizer_no_training_and_no_other_method():
    for path in (SOURCE / "methods").glob("*/*.py"):
        if not path.name.startswith("_"):
            wrong = {name for name in imported(path) if within(name, NOT_FOR_METHODS)}
            assert not {name for name in wrong if "._" not in name}, path  # a private module is its family's own


def test_no_method_is_treated_by_name():
    names = [f'"{name}"' for name in METHODS if name != "plain"]
    for path in TREES:
        if path.relative_to(SOURCE).parts[0] not in ("config", "methods"):
            text = path.read_text()
            assert not [n for n in names if f"== {n}" in text or f"in ({n}" in text], path


def test_reports_records_and_configurations_do_not_import_torch():
    for path in [p for p in TREES if p.relative_to(SOURCE).parts[0] in ("report", "records", "config")]:
        assert not {name for name in imported(path) if within(name, ("torch",))}, path


def test_every_card_has_its_parts():
    for name in METHODS:
        for part in ("Paper", "Code", "Cost", "Limits", "Differs", "Start"):
            assert f"\n{part} " in card(name), (name, part)


def test_the_style_check_reports_names_and_phrases_and_passes_good_text(tmp_path):
    def check(text: str, name: str) -> tuple[int, str]:
        path = tmp_path / name
        path.write_text(text)
        command = [sys.executable, ROOT / "docs" / "check_style.py", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    phrase = "gives" + "\n" + "back"
    code, out = check(f'def f(given):\n    held = given\n    return held\n\n\n"""It {phrase}."""\n', "bad.py")
    assert code == 1
    problems = [line.partition("bad.py:")[2].partition(";")[0] for line in out.splitlines()]
    assert problems[:2] == ["1: name 'given'", "2: name 'held'"] and problems[2].startswith("6: phrase")
    assert check("def f(options):\n    state = options\n    return state\n", "good.py") == (0, "")


def test_training_imports_no_package_that_takes_a_second(tmp_path):
    """Every run of a comparison is a process of its own, and would wait for it again."""
    code = (
        "import sys; from steppe.cli.main import main; code = main([*sys.argv[1].split(), sys.argv[2]]);"
        "print(code, sorted({'sklearn', 'scipy.stats', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    options = "train --epochs 1 --data.train 60 --data.test 20 --data.val 20 --data.size 18 --batch 20 --out"
    done = subprocess.run([sys.executable, "-c", code, options, tmp_path], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr
