"""A run with several averages: recorded by name, chosen on the validation data, exported by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import steppe
from steppe.config import Data, Optim, Study
from steppe.experiments import prepare
from steppe.training import run
from steppe.training.export import export


@pytest.mark.slow
def test_the_best_average_on_the_validation_data_is_deployed_and_each_is_exported(tmp_path: Path):
    study = Study(
        methods=("averages:decays=0.5 0.9,k=2,start=0",), seeds=(0,), epochs=3, batch=20, optim=Optim(lr=1e-3),
        data=Data(train=60, val=20, test=20, size=18),
    )  # fmt: skip
    (job,) = prepare(study, tmp_path, "steppe compare").jobs
    result = run.train_run(job.run, job.folder, run.load_data(job.run))
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    names = ["ema 0.5", "ema 0.9", "swa", "lawa 2", "weights"]
    for row in rows:
        outputs = row["val_outputs"]
        assert list(outputs) == names
        ranks = {name: (value["accuracy"], -value["loss"]) for name, value in outputs.items()}
        assert (row["val_accuracy"], -row["val_loss"]) == max(ranks.values())
    assert result["status"] == "ok"
    weights = {}
    for name in names:
        content = export(job.folder, tmp_path / "flat", which="last", output=name)
        assert content["output"] == name
        weights[name] = load_file(tmp_path / "flat" / "model.safetensors")["fc1.weight"]
    assert len({float(w.double().sum()) for w in weights.values()}) == len(names)
    best = max(ranks, key=ranks.__getitem__)
    export(job.folder, tmp_path / "flat", which="last")
    assert torch.equal(load_file(tmp_path / "flat" / "model.safetensors")["fc1.weight"], weights[best])
    with pytest.raises(steppe.InputError, match="has no average 'ema 0.7' to choose"):
        export(job.folder, tmp_path / "flat", output="ema 0.7")
