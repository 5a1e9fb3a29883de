"""The rules of the package's layout: folders, names, lengths, imports, cards, style."""

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
NOT_FOR_METHODS = ("torch.distributed", "torch.amp", "torch.optim")
FOR_METHODS = ("steppe.core.method", "steppe.config.presets", "steppe.models.multi")
MOST_LINES_OF_METHODS = 3200  # of 50 methods
VARIANTS = {
    "steppe.methods.online_distillation.dml_alternating": "steppe.methods.online_distillation.dml"
}  # extends it
ONE_IMPORTER = {  # public modules that only one module of the package imports, and why they stay public
    "analysis.mode_connectivity": "a measure of several runs",
    "analysis.soup": "a function of several runs",
    "analysis.trajectories": "a measure of several runs",
    "bench.memory": "one measurement",
    "bench.passes": "one measurement",
    "cli.main": "the entry point",
    "cli.help_text": "texts",
    "data.prefetch": "documented",
    "data.transforms.mixup_cutmix": "two kinds of augmentation",
    "data.transforms.registry": "the names of augmentation; benchmarks measure it",
    "diagnostics.capacity_norms": "documented functions of one network",
    "diagnostics.corruptions.published_sets": "documented functions of one network",
    "diagnostics.filter_norms": "documented functions of one network",
    "diagnostics.hessian": "documented functions of one network",
    "diagnostics.noise_tolerance": "documented functions of one network",
    "distributed.process_group": "how a process joins torchrun's job",
    "experiments.launchers.in_process": "one launcher",
    "experiments.launchers.local": "one launcher",
    "experiments.launchers.torchrun": "one launcher",
    "experiments.suite": "where one looks for a suite's runs",
    "methods.*.*": "one method each",
    "models.sadt.*": "one network each",
    "models.*": "one architecture each",
    "models.multi.hybrid": "one architecture of several networks",
    "models.multi.split_point": "where networks are split; documented",
    "report.comparison.*": "one part of a page each",
    "report.diagnosis.*": "one part of a page each",
    "report.suite.*": "one part of a page each",
    "testing.mixed_precision": "checks by topic",
    "testing.multi_process": "checks by topic",
    "testing.torch_compile": "checks by topic",
    "testing.summary_table": "the table of the checks",
    "training.dry_run": "the plan of a run",
}


def name_of(path: Path) -> str:
    return ".".join(("steppe", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
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
    matches = {
        pattern: [n for n in lonely if fnmatch(n, pattern) and n.count(".") == pattern.count(".")]
        for pattern in ONE_IMPORTER
    }
    assert not set(lonely) - {name for names in matches.values() for name in names}
    assert all(matches.values()), "an exception that no module needs"


def test_a_method_imports_the_contract_no_optimizer_and_no_other_method():
    for path in (SOURCE / "methods").glob("*/*.py"):
        names = imported(path)
        assert not {name for name in names if within(name, NOT_FOR_METHODS)}, path
        own = {name for name in names if within(name, ("steppe",)) and name != "steppe.config"}
        allowed = (*FOR_METHODS, VARIANTS.get(name_of(path), "none"))
        # a private module is its family's own
        assert not {name for name in own if not within(name, allowed) and "._" not in name}, path


def test_methods_stay_short():
    lines = sum(len(path.read_text().splitlines()) for path in TREES if path.is_relative_to(SOURCE / "methods"))
    assert lines <= MOST_LINES_OF_METHODS
    sam = (SOURCE / "methods" / "sharpness" / "sam.py").read_text().split('"""', 2)[2]
    assert len([line for line in sam.splitlines() if line]) <= 25


def test_no_method_is_treated_by_name():
    for path, tree in TREES.items():
        if path.relative_to(SOURCE).parts[0] not in ("config", "methods"):
            tests = [(n.left, *n.comparators) for n in ast.walk(tree) if isinstance(n, ast.Compare)]
            tests += [(n.value,) for n in ast.walk(tree) if isinstance(n, ast.MatchValue)]
            sides = [part for test in tests for side in test for part in (side, *getattr(side, "elts", ()))]
            constants = {part.value for part in sides if isinstance(part, ast.Constant)}
            other = {"plain", "one"} if path.stem == "multi_process" else {"plain"}  # there "one" is one process
            assert not constants & (set(METHODS) - other), path


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
