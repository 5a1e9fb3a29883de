"""The documents are true: their code runs, their commands parse, their tables name what exists."""

import importlib
import math
import os
import re
import shlex
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import pytest
import torch

import steppe
from steppe import models
from steppe.cli import main
from steppe.cli.commands import COMMANDS
from steppe.cli.options import expand_recipe
from steppe.cli.options import make as make_options
from steppe.config import Run, Study, demo_text, recipes, suites
from steppe.methods import METHODS, make, row
from steppe.models.multi.hybrid import HybridWeights

ROOT = Path(__file__).parents[2]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("block", blocks("README.md"))
def test_the_readme_s_code_runs(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "Passes(" in out or "test RMSE" in out


def test_every_network_is_listed_and_the_readme_s_methods_exist():
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) <= set(METHODS)
    assert f"There are {len(METHODS)}: [all methods](docs/methods/README.md)" in text
    assert all(f"`{name}`" in (ROOT / "docs/models.md").read_text() for name in models.names())


@pytest.fixture(scope="module")
def maker():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("make_methods")
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_the_methods_pages_are_those_of_their_cards(maker):
    pages = {path.name: path.read_text() for path in (ROOT / "docs/methods").glob("*.md")}
    assert pages == maker.pages(), "run `make docs`"


def test_the_methods_pictures_show_where_gradients_are_taken(maker):
    """Not byte for byte: the last digit of a weight may be another on another machine."""
    pictures = maker.figures()
    assert set(pictures) == {path.name for path in (ROOT / "docs/methods").glob("*.svg")}
    for name, passes in {"plain": 4, "repeat-step": 4, "sam": 8, "looksam": 5, "lpf-sgd": 32, "r-sam": 8}.items():
        for picture in (pictures[f"{name}.svg"], (ROOT / f"docs/methods/{name}.svg").read_text()):
            assert picture.count("<circle") == passes + 1, name  # one is where the weights end
    sam, plain = (maker.make_figures.path(name) for name in ("sam", "plain"))
    for start, points in sam[:-1]:
        assert points[0] == start and math.dist(*points) == pytest.approx(0.5, rel=1e-4)
    assert all(points == [start] for start, points in plain[:-1])


def test_what_is_listed_as_tried_has_a_row_in_the_results(maker):
    assert {name for name in METHODS if row(name).status == "tried"} == set(filter(maker.trials_of, METHODS))
    for name, page in (("msam", "recent-methods"), ("two-step", "small-suite"), ("esam", "family-cifar10")):
        assert f"{page}.md" in maker.trials_of(name)


def test_the_state_of_every_method_that_keeps_one_is_named():
    named = {name for name in METHODS if row(name).keeps != "-"}
    state_types = {name: make(name).state_type for name in METHODS}
    assert named == {name for name, kind in state_types.items() if kind not in (torch.nn.Module, HybridWeights)}


def test_every_path_and_runtime_operation_of_contributing_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:src|tests|docs|examples)/[^`]*)`", text)
    assert len(paths) > 30 and all((ROOT / path).exists() for path in paths), paths
    rt = steppe.Plain().bind(net := torch.nn.Linear(2, 2), torch.optim.SGD(net.parameters())).runtime
    assert all(hasattr(rt, name) for name in re.findall(r"`rt\.(\w+)", text))


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)


def commands(document: Path) -> list[str]:
    """Return every steppe command that a document shows, with the block's variables; SEED stands for a number."""
    lines, variables = [], {}
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match("[A-Z]=", line):
                variables[line[0]] = line[2:].strip('"')
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", lambda _, value=value: value, line)
            if command := re.search(r"(?:^| )(steppe [^>]*)", line):
                lines.append(command[1].replace("SEED", "0"))
    return lines


parser_of = cache(main.command_parser)


def test_every_command_of_the_documents_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text(demo_text())
    lines = [line for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] for line in commands(p)]
    assert len(lines) > 100
    for line in lines:
        command, *arguments = expand_recipe(shlex.split(line, comments=True)[1:])
        options = parser_of(command).parse_args(arguments)
        if command in ("compare", "train", "tune"):
            make_options(Study if command == "compare" else Run, options)
        if command == "show":
            assert options.method in {*METHODS, *recipes.names(), *suites.names(), "demo"}, line


def flags(command: str) -> set[str]:
    return set(parser_of(command)._option_string_actions)


def test_every_command_and_flag_of_the_recipes_and_within_sentences_exists():
    """Besides the commands in blocks, which the test above parses whole."""
    every = set().union(*map(flags, COMMANDS))
    for path in (ROOT / "src/steppe/config/recipes").rglob("*.yaml"):
        text = " ".join(path.read_text().split())
        for command, named in re.findall(r"steppe ([a-z]+)((?: --[\w.-]+)*)", text):
            assert command in COMMANDS and set(named.split()) <= flags(command), (path.name, command, named)
        assert set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)) <= every, path.name
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for command, rest in re.findall(r"`steppe ([a-z]+)\b([^`]*)`", prose):
            assert command in COMMANDS, (path.name, command)
            assert set(re.findall(r"(?<!\S)--[\w.-]+", rest)) <= flags(command), (path.name, command, rest)


def test_the_study_in_a_file_is_one(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/how-to/compare.md").read_text(), re.DOTALL)
    (tmp_path / "study.yaml").write_text(block)
    study = make_options(Study, parser_of("compare").parse_args(["--config", str(tmp_path / "study.yaml")]))
    assert study.as_dict()["methods"] == ("plain", "two-step", "sam", "sam:rho=0.1")
    assert (study.data.size, study.optim.weight_decay, study.epochs) == (64, 5e-4, 30)


# what the blocks of a page print, where it is the same on every machine
PRINTED = {
    "distillation": "['deployed', 'network 1', 'network 2', 'ensemble', 'hybrid']\n",
    "loops": "False 65536.0\n",
    "method": "True Passes(forward=40.0, backward=40.0, updates=40, steps=40)\n",
    "track": "1 ['epoch', 'gradients', 'lr']\n2 ['epoch', 'gradients', 'lr']\nok ['best', 'last']\n",
}
APART = {"integrations": "tests/integrations/test_guide.py"}
LONG = {"compare", "tune", "your-model"}  # they train for more than three seconds
PAGES = [
    p for p in sorted((ROOT / "docs").rglob("*.md")) if "```python\n" in p.read_text() and p.stem not in APART
]
GUIDES = [
    pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in LONG else ())
    for p in PAGES
    if p.parent.name != "methods"
]


@pytest.mark.parametrize("page", GUIDES)
def test_a_page_s_code_runs_from_top_to_bottom(page, capsys, monkeypatch):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(str(page.relative_to(ROOT))):
        exec(compile(block, page.name, "exec", dont_inherit=True), vars(module))
    output = capsys.readouterr().out
    assert output == PRINTED.get(page.stem, output)


def test_the_code_of_the_methods_pages_runs():
    pages = [p for p in PAGES if p.parent.name == "methods"]
    assert {p.stem for p in pages} == set(METHODS)
    for page in pages:
        for block in blocks(f"docs/methods/{page.name}"):
            exec(compile(block, page.name, "exec"), {})


def test_every_python_block_runs_or_says_that_it_does_not():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        kinds = set(re.findall(r"^ *```(\w+.*)$", path.read_text(), re.MULTILINE))
        assert kinds <= {"python", "python no-run", "sh", "text", "yaml"}, path.name


FORGETFUL = """class Forgetful(ParamState):
    def state_dict(self, *args, **kwargs):
        return {}

    def load_state_dict(self, *args, **kwargs):
        pass


"""
MISTAKES = {
    "ddp-global": ("common = rt.all_reduce_mean(g)  #", "common = g  #"),
    "reference": ("scaled_perturbation(state.mean,", "scaled_perturbation(vector.scale(state.mean, -1.0),"),
    "resume": ("class PastGradients(ParamState):", f"{FORGETFUL}class PastGradients(Forgetful):"),
}


def conformance(source: str, checks: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "drift_sam.py").write_text(source)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "steppe", "conformance", "drift_sam.py:DriftSAM"]
    command += ["--checks", *checks] if checks else []
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


@pytest.mark.slow
def test_the_guide_s_method_holds_all_that_must_hold(tmp_path):
    done = conformance(blocks("docs/how-to/method.md")[0], [], tmp_path)
    assert done.returncode == 0, done.stdout
    assert "18 passed, 0 failed, 1 not applicable" in done.stdout


@pytest.mark.slow
def test_the_guide_s_script_compares_the_guide_s_method(tmp_path):
    text = (ROOT / "docs/how-to/method.md").read_text()
    script = re.search(r"as `compare.py`:\n\n```python no-run\n(.*?)```", text, re.DOTALL)
    (tmp_path / "drift_sam.py").write_text(blocks("docs/how-to/method.md")[0])
    (tmp_path / "compare.py").write_text(script[1])
    (command,) = re.findall("^python compare.py (compare .*)$", text, re.MULTILINE)
    sizes = ["--epochs=1", "--data.train=40", "--data.val=10", "--data.test=20", "--seeds=0", "--jobs=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "compare.py", *command.split(), *sizes],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ *drift-sam +n=1|^ *drift-sam:rho=0.1 ", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("check", MISTAKES)
def test_the_mistakes_that_the_guide_names_are_caught(check, tmp_path):
    text = (ROOT / "docs/how-to/method.md").read_text()
    assert f"`{check}`" in text
    right, wrong = MISTAKES[check]
    source = blocks("docs/how-to/method.md")[0]
    assert source.count(right) == 1
    done = conformance(source.replace(right, wrong), [check], tmp_path)
    assert done.returncode == 1 and f"FAIL: {check}" in done.stdout


NEEDED = {"bert_lora": ["transformers", "peft"], "lightning_module": ["lightning"]}
NEEDED |= {"accelerate_loop": ["accelerate"], "timm_task": ["timm.task"]}
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.vision if "timm" in path.stem else ())
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES)
def test_every_example_runs_and_is_short(path):
    for package in NEEDED.get(path.stem, []):
        pytest.importorskip(package)
    # as conftest.py: torchvision is imported by timm, transformers and torchmetrics where it is installed
    program = "import runpy, sys; from support.foreign import declare_operators; declare_operators();"
    start = ["-c", program + "runpy.run_path(sys.argv[1], {}, '__main__')"]
    if "torchrun" in path.name:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    accuracy = re.search(r"accuracy.* ([0-9.]+)%", last)
    assert accuracy is None or float(accuracy[1]) > 75  # an untrained network would not
    assert "Passes(" in last or path.stem in ("old_optimizer", "lora_trial")  # the latter prints norms
    assert len(path.read_text().splitlines()) < (120 if path.stem == "lora_trial" else 60)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_other_servers(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    pages = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.html")}
    assert {f"methods/{name}.html" for name in METHODS} <= set(pages)
    for name, text in pages.items():
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"(https?:[^\"]+)|<link[^>]*href=\"(https?:[^\"]+)", text
        )
        assert not loaded, (name, loaded)
    assert "Minimise the loss at a random point" in pages["reference/methods.html"]
