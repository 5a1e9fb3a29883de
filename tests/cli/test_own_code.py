"""The commands with code of the user's, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = """
import pathlib, numpy as np, torch, steppe
pathlib.Path("imported").touch()
def make(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
def load():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    return x, x.sum(1)
def worst(output, y):
    return (output.squeeze(1) - y).abs().max()
class Own(steppe.Method):
    "Plain training under a name of one's own."
"""
CODE = "--models own:make --datasets folder/data.py:load --metric own:worst:lower --optim.name own:Momentum"


def steppe(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "steppe", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_own_network_data_metric_optimizer_and_method_from_the_command_line(tmp_path):
    (tmp_path / "own.py").write_text(MODULE + "class Momentum(torch.optim.SGD): pass\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/data.py").write_text(MODULE)
    common = [*CODE.split(), "--methods", "plain", "own:Own", "sam+own:Own", "--seeds", "0", "--epochs", "2"]
    done = steppe(tmp_path, "compare", *common, "--batch", "10", "--optim.lr", "0.05")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out/compare.json").read_text())
    assert list(content["methods"]) == ["plain", "own:Own", "sam+own:Own"]
    (about,) = content["data"].values()
    assert about["metric"] == {"name": "worst", "unit": "", "higher": False, "percent": False}
    runs = [json.loads(f.read_text()) for f in sorted(tmp_path.glob("out/runs/*/result.json"))]
    assert len(runs) == 3 and all(r["status"] == "ok" and r["test"]["last"]["metric"] > 0 for r in runs)
    (tmp_path / "imported").unlink()
    run = str(next(tmp_path.glob("out/runs/*")))
    refused = steppe(tmp_path, "export", run, "flat")
    assert refused.returncode == 2 and "code that only a file names" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "imported").exists()
    assert steppe(tmp_path, "report", "out").returncode == 0 and not (tmp_path / "imported").exists()
    done = steppe(tmp_path, "export", run, "flat", "--code", "own:make", "own:Own")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "flat/model.safetensors").exists()


@pytest.mark.slow
def test_a_settings_file_imports_nothing(tmp_path):
    (tmp_path / "own.py").write_text(MODULE)
    (tmp_path / "settings.yaml").write_text("models: ['own:make']\ndatasets: ['own:load']\nepochs: 1\nbatch: 10\n")
    refused = steppe(tmp_path, "compare", "--config", "settings.yaml")
    assert refused.returncode == 2 and "code that only a file names" in refused.stderr
    assert not (tmp_path / "imported").exists()
    named = steppe(
        tmp_path, "compare", "--config", "settings.yaml", "--models", "own:make", "--datasets", "own:load",
        "--methods", "plain", "--seeds", "0",
    )  # fmt: skip
    assert named.returncode == 0, named.stderr
