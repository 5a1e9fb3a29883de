"""A run whose deployed weights are a mean is trained, diagnosed and exported, without the command line."""

from pathlib import Path

import pytest
import torch

from steppe.config import Data, Run
from steppe.training.run import load_data, train_run


def test_a_run_is_trained_diagnosed_and_exported(device: str, tmp_path: Path) -> None:
    run = Run(method="sam+ema", epochs=2, batch=32, data=Data(train=64, test=40, size=18), keep=True)
    home = tmp_path / "runs" / run.digest()
    assert train_run(run, home, load_data(run))["status"] == "ok"
    pytest.importorskip("scipy")
    from steppe.analysis.diagnose_runs import Request, diagnose_runs
    from steppe.training.export import export

    result = diagnose_runs([home], Request(0.1), lambda _: None, lambda _: None)[home]
    assert result["sharpness"]["sam"] is not None
    shape = export(home, tmp_path / "out")["input"]["shape"]
    model = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert model(torch.zeros(3, *shape[1:])).device.type == "cpu"
