"""Every command on the device, from training to the figures, as a user gives it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for package in ("jsonargparse", "docstring_parser", "rich", "yaml", "sklearn", "scipy", "matplotlib", "jinja2"):
    pytest.importorskip(package)
main = pytest.importorskip("steppe.cli.main").main

SMALL = ["--data.train", "64", "--data.test", "40", "--data.size", "18", "--batch", "32"]


@pytest.fixture
def run(device: str, tmp_path: Path) -> Path:
    """Train a run whose deployed weights are a mean, and return its folder."""
    command = ["train", "--method", "sam+ema", "--epochs", "2", *SMALL, "--out", str(tmp_path)]
    assert main([*command, "--watch.sharpness", "1", "--watch.weights", "1"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "ok"
    return folder


def test_a_run_is_diagnosed_and_exported(device: str, run: Path, tmp_path: Path) -> None:
    """The diagnosis mixes nothing of two devices, and the exported files need none."""
    assert main(["diagnose", str(run), "--seconds", "0.1"]) == 0
    content = json.loads((run / "diagnosis.json").read_text())
    assert content["sharpness"]["sam"] is not None
    for which in ("best", "last"):
        out = tmp_path / which
        assert main(["export", str(run), str(out), "--weights", which]) == 0
        model = torch.export.load(out / "model.pt2").module()
        assert model(torch.zeros(3, *content_shape(out))).device.type == "cpu"


def content_shape(out: Path) -> list[int]:
    return json.loads((out / "model.json").read_text())["input"]["shape"][1:]


def test_methods_are_compared_reported_and_diagnosed(device: str, tmp_path: Path) -> None:
    names = ["plain", "swa:start=0.5"]
    command = ["compare", "--methods", *names, "--seeds", "0", "--epochs", "2", *SMALL, "--out", str(tmp_path)]
    assert main([*command, "--watch.weights", "1", "--precision", "bf16"]) == 0
    assert main(["report", str(tmp_path)]) == 0 and (tmp_path / "report.html").exists()
    assert main(["diagnose", str(tmp_path), "--seconds", "0.1"]) == 0


def test_settings_are_searched(device: str, tmp_path: Path) -> None:
    command = ["tune", "--method", "sam", "--trials", "2", "--epochs", "1", *SMALL, "--out", str(tmp_path)]
    assert main(command) == 0


def test_steps_are_timed(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batch", "8", "--size", "18", "--steps", "2", "--repeats", "2"]
    assert main(["bench", "methods", "sam", "esam", *sizes, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["method"] for r in results] == ["plain", "sam", "esam"]
    assert all(r["milliseconds"] > 0 and r["memory"] > 0 for r in results)
    assert all((r["overhead"] is None) == (device == "cuda") for r in results)


def test_a_method_is_checked(device: str) -> None:
    assert main(["conformance", "sam", "--checks", "restored", "resume", "--device", device]) == 0


def test_one_rank_of_torchrun_trains_and_two_need_two_gpus(device: str, tmp_path: Path) -> None:
    """Two ranks on one GPU are refused in one line; on the processor they train."""
    few = torch.cuda.device_count() < 2 if device == "cuda" else False
    for ranks in ("1", "2"):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
        command = [*launcher, "-m", "steppe", "train", "--epochs", "1", *SMALL, "--out", str(tmp_path / ranks)]
        job = subprocess.run(command, capture_output=True, text=True, timeout=120)
        lines = [line for line in job.stderr.splitlines() if line.startswith("steppe: ")]
        if ranks == "2" and few:
            assert job.returncode != 0 and len(lines) == 1 and "torchrun starts 2 ranks" in lines[0], job.stderr
        else:
            assert job.returncode == 0, job.stderr
