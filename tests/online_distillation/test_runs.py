"""Runs of methods of several networks: what is recorded of each, how they resume, what is exported."""

import dataclasses
import json
import stat
import warnings

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_steppe import tiny
from torch import nn

import steppe
from steppe import models, records
from steppe.config import Data, Optim, Run
from steppe.core.method import Method
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.tasks.objective import Objective
from steppe.training import run as engine
from steppe.training import trainer
from steppe.training.checkpoint import file
from steppe.training.evaluation import evaluate
from steppe.training.export import export

DATA = Data(train=120, val=40, test=60, size=12, views=("crop-flip", "crop-flip-cutout", "crop-randaugment"))
RUN = Run(model="tiny", epochs=4, batch=40, data=DATA, optim=Optim(lr=1e-2))
METHODS = [
    "okdph:every=1e,same_start=false,mixing=dirichlet",
    "pcl:split_at=4,decay=0.9",
    "one:split_at=4",
    "sam+dml:networks=3",
]
OUTPUTS = {
    METHODS[0]: ["network 1", "network 2", "ensemble", "hybrid"],
    METHODS[2]: ["branch 1", "branch 2", "branch 3", "mean", "ensemble"],
    METHODS[3]: ["network 1", "network 2", "network 3", "ensemble"],
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)


@pytest.fixture(scope="module")
def images():
    return engine.load_data(RUN)


class Stop(Exception):  # noqa: N818
    """Raised in the progress callback, as if the process were killed."""


def fit(run: Run, out, images, until: int = 99):
    def progress(status) -> None:
        if isinstance(status, engine.TrainingStatus) and status.val_accuracy is not None and status.epoch == until:
            raise Stop

    folder = out / engine.digest(run)
    return engine.train_run(run, folder, images, progress), folder


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_bitwise(method, tmp_path, images):
    run = dataclasses.replace(RUN, method=method)
    result, folder = fit(run, tmp_path / "whole", images)
    assert result["status"] == "ok"
    with pytest.raises(Stop):
        fit(run, tmp_path / "parts", images, until=2)
    again, parts = fit(run, tmp_path / "parts", images)
    assert again["test"] == result["test"]
    assert records.read_lines(folder / trainer.METRICS) == records.read_lines(parts / trainer.METRICS)
    a, b = (file.read(f / engine.CHECKPOINT).tensors for f in (folder, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", OUTPUTS)
def test_each_output_is_recorded_by_name_every_epoch_and_at_the_end(method, tmp_path, images):
    result, folder = fit(dataclasses.replace(RUN, method=method, epochs=2), tmp_path, images)
    lines = records.read_lines(folder / trainer.METRICS)
    for outputs in (*(line["val_outputs"] for line in lines), result["test"]["last"]["outputs"]):
        assert list(outputs) == OUTPUTS[method]
        assert all(0 <= v["accuracy"] <= 1 and v["loss"] > 0 for v in outputs.values())
    assert all(line["val_diversity"] >= 0 for line in lines)
    first = OUTPUTS[method][0]
    assert result["test"]["last"]["outputs"][first]["accuracy"] == result["test"]["last"]["accuracy"]


def test_a_method_of_one_network_has_no_outputs_by_name(tmp_path, images):
    result, folder = fit(dataclasses.replace(RUN, method="sam", epochs=1), tmp_path, images)
    assert set(result["test"]["last"]) == {"accuracy", "loss"}
    assert not [k for line in records.read_lines(folder / trainer.METRICS) for k in line if "output" in k]


def test_outputs_are_those_of_each_network_alone(images):
    """Evaluated one by one, by hand, without the code that arranges them."""
    method = steppe.OKDPH(same_start=False)
    net = method.build(lambda: tiny(10, images.channels, images.size))
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1))
    normalize = Normalizer.of("unit", images.train)
    result = evaluate(Run(data=Data(normalize="unit")), method, step, images, images.test, Objective())
    (batch,) = evaluation_batches(images.test, 500, normalize)
    net.eval()
    with torch.no_grad():
        logits = {f"network {i}": n(batch.x) for i, n in enumerate(net.networks, 1)}
        mixture = tiny(10, images.channels, images.size)
        for p, a, b in zip(mixture.parameters(), *(n.parameters() for n in net.networks), strict=True):
            p.copy_((a + b) / 2)
        logits["hybrid"] = mixture(batch.x)
    for name, z in logits.items():
        hits = (z.argmax(1) == batch.y).float().mean()
        assert result["outputs"][name]["accuracy"] == pytest.approx(float(hits))
        assert result["outputs"][name]["loss"] == pytest.approx(
            float(nn.functional.cross_entropy(z, batch.y)), rel=1e-5
        )
    p, q = (torch.softmax(logits[f"network {i}"], 1) for i in (1, 2))
    assert result["diversity"] == pytest.approx(float((p - q).square().sum(1).sqrt().mean()), rel=1e-5)


def test_views_of_a_run_must_be_enough(images):
    run = dataclasses.replace(RUN, method="okdph:networks=3")
    with pytest.raises(steppe.InputError, match="data.views has 3 views and the method takes 4"):
        engine.check_run(run, images)
    engine.check_run(dataclasses.replace(run, method="sam"), images)  # the first view serves


EXPORTED = [
    *METHODS,
    "okdph:deploy=hybrid,same_start=false",
    "okddip:factor=2,split_at=4",
    "okddip:factor=2,form=network",
    "ffl:split_at=4",
    "kdcl:target=linear",
    "sam+ema:decay=0.5",
    "plain",
]


@pytest.mark.parametrize("method", EXPORTED)
def test_an_export_is_one_plain_network_with_the_run_s_accuracy(method, tmp_path, images):
    result, folder = fit(dataclasses.replace(RUN, method=method, epochs=2), tmp_path, images)
    batches = list(evaluation_batches(images.test, 500, Normalizer.of("unit", images.train)))
    for weights in ("best", "last"):
        described = export(folder, tmp_path / weights, which=weights)
        plain = tiny(len(images.classes), images.channels, images.size)
        plain.load_state_dict(load_file(tmp_path / weights / "model.safetensors"))
        program = torch.export.load(tmp_path / weights / "model.pt2").module()
        with torch.no_grad():
            for net in (plain.eval(), program):
                hits = sum(int((net(b.x).argmax(1) == b.y).sum()) for b in batches)
                assert hits / len(images.test) == result["test"][weights]["accuracy"]
        written = json.loads((tmp_path / weights / "model.json").read_text())
        assert written == json.loads(json.dumps(described))
        assert written["input"]["resize"].startswith("bilinear, antialiased")
        modes = {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / weights).iterdir()}
        assert modes == {stat.S_IMODE((folder / "timing.jsonl").stat().st_mode)}  # that of any new file
        assert written["parameters"] == sum(p.numel() for p in plain.parameters())
        assert written["epoch"] == (2 if weights == "last" else result["test"]["best"]["epoch"])


@pytest.mark.vision
@pytest.mark.parametrize("method", METHODS[:3])
def test_another_runtime_gives_the_exported_network_s_outputs(method, tmp_path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, folder = fit(dataclasses.replace(RUN, method=method, epochs=1), tmp_path, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        export(folder, tmp_path / "flat", onnx=True)
    plain = tiny(len(images.classes), images.channels, images.size)
    plain.load_state_dict(load_file(tmp_path / "flat" / "model.safetensors"))
    program = onnxruntime.InferenceSession(tmp_path / "flat" / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = torch.randn(count, 1, 12, 12)
        (logits,) = program.run(None, {program.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(logits), plain.eval()(x), atol=1e-5)


def test_an_ensemble_is_no_single_network(tmp_path, images, monkeypatch):
    """A method that deploys something else than one network cannot be exported."""
    run = dataclasses.replace(RUN, method="dml", epochs=1)
    _, folder = fit(run, tmp_path, images)
    monkeypatch.setattr(steppe.DML, "predict", lambda self, net, state, x: self.outputs(net, state, x)["ensemble"])
    with pytest.raises(steppe.InputError, match=r"differ from those of dml .* a single network"):
        export(folder, tmp_path / "flat")
    assert Method.predict is not steppe.DML.predict
