"""The package as a user installs it: the files of the wheel, and the error where an extra is missing."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from steppe.config import TRACKERS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

EXTRAS = {"torchvision", "timm", "transformers", "accelerate", "peft", "lightning", "torchmetrics", "optuna"}
EXTRAS |= {"tensorboard", "wandb", "mlflow", "ray", "submitit", "onnx", "onnxscript", "mkdocs"}
DEPENDENCIES = {name.partition(">")[0].replace("-", "_").lower() for name in PROJECT["dependencies"]}
DEPENDENCIES = DEPENDENCIES - {"torch", "numpy"} | {"sklearn", "PIL", "yaml"}
# every run of a comparison is a process of its own, and would wait for these packages
LATE = {"sklearn", "scipy.stats", "matplotlib", "pandas", "steppe.testing"}
PROGRAM = f"""
import importlib.abc, sys, time

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in missing or name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
missing = set()
import torch
missing = {EXTRAS | DEPENDENCIES}
start = time.process_time()
import steppe
print(time.process_time() - start)

missing = set()
from steppe import methods, models, tracking
from steppe.cli.main import main
options = "train --epochs 1 --data.train 60 --data.test 20 --data.val 20 --data.size 18 --batch 20 --out"
print(main([*options.split(), sys.argv[1]]), {LATE} & set(sys.modules))

missing = {EXTRAS}
for name in ("torchvision/resnet18", "timm/resnet18", "timm", "transformers", "lightning", "tuning",
             "tensorboard", "wandb", "mlflow"):
    try:
        if "/" in name:
            models.build(name, classes=2, channels=3, size=32)
        elif name in {TRACKERS}:
            tracking.available([name])
        else:
            __import__("steppe.experiments.tuning" if name == "tuning" else f"steppe.integrations.{{name}}")
        print("nothing")
    except steppe.InputError as error:
        print(error)
import steppe.integrations.torch_optimizer, steppe.integrations.accelerate
print(main(["list"]), main(["tune", "--method", "sam"]))
"""


def test_packages_are_imported_where_they_are_used_and_a_missing_extra_is_named(tmp_path):
    """The core needs torch and numpy, and less than a second."""
    command = [sys.executable, "-c", PROGRAM, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    seconds, *lines = done.stdout.splitlines()
    assert float(seconds) < 1
    start = lines.index("0 set()") + 1
    extras = ("vision", "vision", "vision", "hf", "lightning", "tune", "tensorboard", "wandb", "mlflow")
    for line, extra in zip(lines[start:], extras, strict=False):
        assert f"pip install 'steppe[{extra}]'" in line, line
        assert extra in PROJECT["optional-dependencies"]
    assert lines[-1] == "0 2"
    assert "sam" in done.stdout
    assert "No module named 'optuna'; pip install 'steppe[tune]'" in done.stderr


def test_every_extra_that_an_error_names_is_there():
    text = "\n".join(path.read_text() for path in (ROOT / "src/steppe").rglob("*.py"))
    named = set(re.findall(r"pip install 'steppe\[(\w+)\]'", text)) | set(TRACKERS)
    assert named <= set(PROJECT["optional-dependencies"])
    assert {"vision", "hf", "lightning", "tune", "onnx", "cluster"} <= named


def test_the_extras_hold_what_their_code_imports():
    extras = PROJECT["optional-dependencies"]
    named = {
        extra: {one.partition(">")[0].partition("=")[0] for one in packages} for extra, packages in extras.items()
    }
    assert named["vision"] == {"torchvision", "timm"}
    assert named["hf"] == {"transformers", "accelerate", "peft"}
    assert named["lightning"] == {"lightning"}
    assert named["tune"] == {"optuna"}
    assert named["onnx"] == {"onnx", "onnxscript"}
    assert all(named[tracker] == {tracker} for tracker in TRACKERS)
    assert named["tune"] <= named["dev"]
    # CI tests with the versions of constraints.txt
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"optuna", "transformers", "peft"} <= pinned


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_on_its_own(tmp_path):
    pytest.importorskip("build")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(ROOT)], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src/steppe"
    files = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {"py.typed", "config/recipes/rwp-table1.yaml"} < files
    assert {f"steppe/{name}" for name in files} <= names
    assert not [n for n in names if "__pycache__" in n or "_cache/" in n or n.startswith("tests")]

    venv.create(tmp_path / "v", with_pip=True)
    python = tmp_path / "v/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    # dependencies are those of this environment, behind the wheel: installing torch again would prove nothing more
    (site,) = (tmp_path / "v/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run(str(python), "-c", "import steppe; print(steppe.__file__)")
    assert "sadt-v1" in run(str(tmp_path / "v/bin/steppe"), "list")
    assert "rwp-table1" in run(str(tmp_path / "v/bin/steppe"), "list", "recipes")
