"""Monitors measure what they say, and do not change the training."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.interrupted import fit, lines, same_tensors, stopped
from support.many import together
from support.tiny_steppe import command, tiny

from steppe import methods, models
from steppe.analysis import load_run
from steppe.cli.main import main
from steppe.config import Data, Monitoring, Optim, Run
from steppe.data.dataset import DataSet
from steppe.data.splits import subset
from steppe.training import trainer
from steppe.training.checkpoint import file
from steppe.training.factories import make_network
from steppe.training.monitor import SAMPLES, load_weights, weights_name
from steppe.training.run import CHECKPOINT, load_data

RUN = Run(
    model="resnet-thin", epochs=3, batch=30, data=Data(train=60, val=20, test=20, size=16), optim=Optim(lr=1e-3)
)
EVERY = Monitoring(sharpness=1, weights=2)
METHODS = ("sadt-v2", "ema:decay=0.9", "okdph:networks=2")


@pytest.fixture(scope="module")
def images() -> DataSet:
    return load_data(RUN)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory, images: DataSet) -> dict[str, tuple[dict, Path]]:
    out = tmp_path_factory.mktemp("monitored")
    return {m: fit(dataclasses.replace(RUN, method=m, watch=EVERY), out, images) for m in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_training_is_the_same_with_monitors(method, monitored, tmp_path, images):
    result, folder = monitored[method]
    free, other = fit(dataclasses.replace(RUN, method=method), tmp_path, images)
    assert folder.name != other.name
    # weights, running statistics, optimizer, the method's state, every RNG state
    assert same_tensors(folder / CHECKPOINT, other / CHECKPOINT)
    assert all("sharpness" in line for line in lines(folder))
    assert [{k: v for k, v in line.items() if k != "sharpness"} for line in lines(folder)] == lines(other)
    assert (result["test"], result["passes"], result["steps"]) == (free["test"], free["passes"], free["steps"])


def test_monitors_take_no_training_time_and_measure_in_the_epochs_requested_and_the_last(
    tmp_path, images, monkeypatch
):
    now = 0.0
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now)
    measure = trainer.Monitor.measure

    def slow(*arguments):
        nonlocal now
        now += 1000
        return measure(*arguments)

    monkeypatch.setattr(trainer.Monitor, "measure", slow)
    result, folder = fit(dataclasses.replace(RUN, epochs=5, watch=Monitoring(sharpness=2)), tmp_path, images)
    assert result["seconds"] == 0
    assert ["sharpness" in line for line in lines(folder)] == [False, True, False, True, True]
    assert not list(folder.glob("weights-*"))


@pytest.mark.parametrize("method", ["ema:decay=0.9", "okdph:networks=2"])
def test_a_resumed_run_has_all_measurements(method, monitored, tmp_path, images):
    _, folder = monitored[method]
    run = dataclasses.replace(RUN, method=method, watch=EVERY)
    # weights saved after the last checkpoint are written again, also over a torn file
    (stopped(run, tmp_path, images) / weights_name(3)).write_bytes(b"torn")
    _, parts = fit(run, tmp_path, images)
    assert lines(parts) == lines(folder)
    names = sorted(p.name for p in folder.glob("weights-*"))
    assert names == sorted(p.name for p in parts.glob("weights-*")) == [weights_name(e) for e in (0, 2, 3)]
    for name in names:
        assert same_tensors(folder / name, parts / name)
        assert file.read(folder / name).data == file.read(parts / name).data


@pytest.mark.parametrize("method", METHODS)
def test_the_sharpness_is_that_of_the_deployed_model(method, monitored, images):
    _, folder = monitored[method]
    trained = load_run.load(folder, "last", images)
    net = trained.model.double().eval()
    (batch,) = trained.batches(subset(images.train, SAMPLES))
    x, y = batch.x.double(), batch.y
    before = F.cross_entropy(net(x), y)
    grads = torch.autograd.grad(before, list(net.parameters()))
    length = torch.sqrt(sum((g**2).sum() for g in grads))
    with torch.no_grad():
        for p, g in zip(net.parameters(), grads, strict=True):
            p += 0.05 * g / length
        rise = float(F.cross_entropy(net(x), y) - before)
    assert lines(folder)[-1]["sharpness"] == pytest.approx(rise, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_weights_are_the_initial_and_the_last_ones(method, monitored, images):
    _, folder = monitored[method]
    first, last = (load_weights(folder / weights_name(e)) for e in (0, 3))
    deployed = load_run.load(folder, "last", images).model.state_dict()
    assert all(torch.equal(last["deployed"][k], v) for k, v in deployed.items())
    if len(first) == 1:
        with torch.random.fork_rng():
            initial = make_network(RUN, methods.parse("plain"), images).state_dict()
        assert all(torch.equal(first["deployed"][k], v) for k, v in initial.items())
    else:
        assert list(first) == ["deployed", "network 1", "network 2"]
        # OKDPH deploys its first student
        assert all(torch.equal(last["deployed"][k], v) for k, v in last["network 1"].items())


def test_a_sharded_network_is_measured_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    arguments = [
        "train", "--model", "tiny", "--method", "sam", "--sync", "global", "--epochs", "2", "--batch", "50",
        "--data.train", "200", "--data.test", "60", "--data.size", "18", "--optim.lr", "1e-3",
        "--watch.sharpness", "2", "--watch.weights", "1",
    ]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "alone")]) == 0
    for code, _, error in together(
        2, command, [*arguments, "--parallel", "fsdp", "--out", str(tmp_path / "fsdp")]
    ):
        assert code == 0, error
    alone, sharded = (next((tmp_path / name / "runs").iterdir()) for name in ("alone", "fsdp"))
    assert lines(alone)[-1]["sharpness"] == pytest.approx(lines(sharded)[-1]["sharpness"], rel=1e-3)
    for epoch in (0, 1, 2):
        one, two = (load_weights(folder / weights_name(epoch))["deployed"] for folder in (alone, sharded))
        for k in one:
            torch.testing.assert_close(one[k], two[k], rtol=1e-4, atol=1e-5)
    assert json.loads((sharded / "result.json").read_text())["status"] == "ok"
