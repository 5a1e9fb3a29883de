"""What a run looks at while it trains is right, and training does not know of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.tiny_steppe import tiny

from steppe import InputError, methods, models, records
from steppe.analysis import load_run
from steppe.config import Data, Monitoring, Optim, Run
from steppe.data.dataset import DataSet
from steppe.data.splits import subset
from steppe.training import run as engine
from steppe.training import trainer
from steppe.training.checkpoint import file
from steppe.training.factories import make_network
from steppe.training.monitor import SAMPLES, kept, weights_name

HERE = Path(__file__).parents[1]
RUN = Run(
    model="resnet-thin", epochs=3, batch=30, data=Data(train=60, val=20, test=20, size=16), optim=Optim(lr=1e-3)
)
EVERY = Monitoring(sharpness=1, weights=2)


@pytest.fixture(scope="module")
def images() -> DataSet:
    return engine.load_data(RUN)


def fit(run: Run, out: Path, images: DataSet, listen=lambda _: None) -> tuple[dict, Path]:
    folder = out / engine.digest(run)
    return engine.train_run(run, folder, images, listen), folder


def lines(folder: Path) -> list[dict]:
    return records.read_lines(folder / trainer.METRICS)


def held(folder: Path) -> dict[str, torch.Tensor]:
    return dict(file.read(folder / engine.CHECKPOINT).tensors)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, images: DataSet) -> dict[str, tuple[dict, Path]]:
    out = tmp_path_factory.mktemp("watched")
    every = {m: dataclasses.replace(RUN, method=m, watch=EVERY) for m in METHODS}
    return {m: fit(run, out, images) for m, run in every.items()}


METHODS = ("plain", "sadt-v2", "rwp", "ema:decay=0.9", "okdph:networks=2")


@pytest.mark.parametrize("method", METHODS)
def test_training_does_not_know_that_it_is_watched(method, watched, tmp_path, images):
    result, folder = watched[method]
    free, other = fit(dataclasses.replace(RUN, method=method), tmp_path, images)
    assert folder.name != other.name
    a, b = held(folder), held(other)
    # weights, running statistics, optimizer, what is remembered, every random stream
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    own = lines(folder)
    assert all("sharpness" in line for line in own)
    assert [{k: v for k, v in line.items() if k != "sharpness"} for line in own] == lines(other)
    assert (result["test"], result["passes"], result["steps"]) == (free["test"], free["passes"], free["steps"])


def test_what_is_watched_takes_no_training_time(tmp_path, images, monkeypatch):
    now = 0.0
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now)
    look = trainer.Watcher.look

    def slow(*given):
        nonlocal now
        now += 1000
        return look(*given)

    monkeypatch.setattr(trainer.Watcher, "look", slow)
    result, _ = fit(dataclasses.replace(RUN, epochs=2, watch=Monitoring(sharpness=1)), tmp_path, images)
    assert result["seconds"] == 0


@pytest.mark.parametrize("method", ["plain", "ema:decay=0.9", "okdph:networks=2"])
def test_a_run_that_was_stopped_has_all_that_was_watched(method, watched, tmp_path, images):
    class Stop(Exception):  # noqa: N818
        pass

    def stop(progress: engine.TrainingStatus) -> None:
        if progress.epoch == 2:
            raise Stop

    _, folder = watched[method]
    run = dataclasses.replace(RUN, method=method, watch=EVERY)
    with pytest.raises(Stop):
        fit(run, tmp_path, images, stop)
    # what was kept after the last checkpoint is written again, also over a file that is torn
    (tmp_path / engine.digest(run) / weights_name(3)).write_bytes(b"torn")
    _, parts = fit(run, tmp_path, images)
    assert lines(parts) == lines(folder)
    names = sorted(p.name for p in folder.glob("weights-*"))
    assert names == sorted(p.name for p in parts.glob("weights-*")) == [weights_name(e) for e in (0, 2, 3)]
    for name in names:
        a, b = (file.read(f / name) for f in (folder, parts))
        assert a.data == b.data and a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


@pytest.mark.parametrize("method", METHODS)
def test_the_sharpness_is_that_of_what_is_deployed(method, watched, images):
    _, folder = watched[method]
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
def test_the_weights_kept_are_those_of_the_start_and_of_the_end(method, watched, images):
    _, folder = watched[method]
    first, last = (kept(folder / weights_name(e)) for e in (0, 3))
    ended = load_run.load(folder, "last", images).model.state_dict()
    assert all(torch.equal(last["deployed"][k], v) for k, v in ended.items())
    if len(first) == 1:
        with torch.random.fork_rng():
            begun = make_network(RUN, methods.parse("plain"), images).state_dict()
        assert all(torch.equal(first["deployed"][k], v) for k, v in begun.items())
    else:
        assert list(first) == ["deployed", "network 1", "network 2"]
        # OKDPH deploys the mean of the two
        k = "conv1.weight" if "conv1.weight" in ended else next(iter(ended))
        mean = (last["network 1"][k] + last["network 2"][k]) / 2
        torch.testing.assert_close(last["deployed"][k], mean)


def test_only_the_epochs_asked_for_and_the_last_are_looked_at(tmp_path, images):
    run = dataclasses.replace(RUN, epochs=5, watch=Monitoring(sharpness=2))
    _, folder = fit(run, tmp_path, images)
    assert ["sharpness" in line for line in lines(folder)] == [False, True, False, True, True]
    assert not list(folder.glob("weights-*"))


@pytest.mark.parametrize("name", ["sharpness", "weights"])
def test_no_epochs_are_refused(name):
    with pytest.raises(InputError, match=f"watch.{name} is 0; give a number of epochs, at least 1"):
        Monitoring(**{name: 0})


def test_shards_are_watched_as_one_network_is(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    given = [
        "train", "--model", "tiny", "--method", "sam", "--sync", "global", "--epochs", "2", "--batch", "50",
        "--data.train", "200", "--data.test", "60", "--data.size", "18", "--optim.lr", "1e-3",
        "--watch.sharpness", "2", "--watch.weights", "1",
    ]  # fmt: skip
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    commands = {
        "alone": [sys.executable, HERE / "support" / "tiny_steppe.py", *given],
        "shards": [*start, HERE / "support" / "tiny_steppe.py", *given, "--parallel", "fsdp"],
    }
    found = {}
    for name, command in commands.items():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--out", tmp_path / name], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        (found[name],) = (tmp_path / name / "runs").iterdir()
    a, b = (lines(folder)[-1]["sharpness"] for folder in found.values())
    assert a == pytest.approx(b, rel=1e-3)
    for epoch in (0, 1, 2):
        ours, theirs = (kept(folder / weights_name(epoch))["deployed"] for folder in found.values())
        for k in ours:
            torch.testing.assert_close(ours[k], theirs[k], rtol=1e-4, atol=1e-5)
    assert json.loads((found["shards"] / "result.json").read_text())["status"] == "ok"
