"""A run that was stopped resumes bitwise on the device, with deterministic algorithms."""

from pathlib import Path
from typing import Any

import pytest
import torch

from steppe.config import Data, Run
from steppe.training.checkpoint import file
from steppe.training.run import load_data, train_run
from steppe.training.trainer import TrainingStatus

METHODS = ("plain", "sam", "esam", "sadt-v1", "lpf-sgd", "mesa", "saf", "ema", "kdcl")


class Stopped(Exception):  # noqa: N818
    """Raised in place of Ctrl-C."""


def train(run: Run, folder: Path, stop_after: int | None = None) -> tuple[str, dict[str, torch.Tensor]]:
    """Train a run, stopped after some epochs and resumed if requested; return its records and its tensors."""
    images = load_data(run)

    def progress(status: TrainingStatus) -> None:
        if stop_after is not None and status.epoch > stop_after:
            raise Stopped

    if stop_after is not None:
        with pytest.raises(Stopped):
            train_run(run, folder, images, progress)
        torch.manual_seed(12345)  # as another process would have another global stream
    result = train_run(run, folder, images)
    assert result["status"] == "ok"
    return (folder / "metrics.jsonl").read_text(), dict(file.read(folder / "checkpoint.safetensors").tensors)


KINDS = [(m, {}) for m in METHODS] + [("sam", {"precision": "fp16"}), ("sadt-v1", {"graph": True})]


@pytest.mark.parametrize(("method", "options"), KINDS, ids=str)
def test_a_stopped_run_resumes_bitwise(method: str, options: dict[str, Any], device: str, tmp_path: Path) -> None:
    # the fast tests resume every method on the processor; here two of them show that this test itself works
    if device == "cpu" and ("precision" in options or method not in ("sam", "sadt-v1")):
        pytest.skip("on the processor every method resumes in the tests of training")
    data = Data(train=96, test=20, size=18, augment=("flip", "crop", "cutmix"))
    run = Run(method=method, epochs=3, batch=32, data=data, deterministic=True, keep=True, **options)
    undisturbed = train(run, tmp_path / "a" / run.digest())
    resumed = train(run, tmp_path / "b" / run.digest(), stop_after=1)
    assert undisturbed[0] == resumed[0]
    for name, tensor in undisturbed[1].items():
        assert torch.equal(tensor, resumed[1][name]), name
