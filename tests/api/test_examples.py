"""The examples of comparisons run as they stand, with fewer seeds and epochs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples/compare").glob("*.py"))
NEEDED = {"tokens": ["datasets", "transformers"], "schedule_free": ["schedulefree"], "tune_rho": ["optuna"]}
SMALL = {"SEEDS": "2", "EPOCHS": "2", "TRIALS": "2", "MODEL": "gpt-tiny", "TRAIN": "128", "OMP_NUM_THREADS": "1"}
SAYS = {"gpt": "perplexity", "photos": "macro F1", "segmentation": "mean IoU", "tokens": "token accuracy"}


def environment():
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | SMALL | {"PYTHONPATH": paths}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_speaks_its_metric_and_is_short(path):
    for package in NEEDED.get(path.stem, []):
        pytest.importorskip(package)
    command = [sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert SAYS.get(path.stem, "RMSE") in done.stdout
    assert "accuracy" not in done.stdout.replace("token accuracy", "").replace("Token accuracy", "")
    assert len(path.read_text().splitlines()) < 65


@pytest.mark.slow
def test_the_notebook_runs_with_workers(tmp_path):
    pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    notebook = str(ROOT / "examples/compare/notebook.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", notebook]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "<td>sam</td>" in done.stdout and "sam minus plain" in done.stdout
