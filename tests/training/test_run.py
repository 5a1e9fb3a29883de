"""One run: budgets, resume, failure, and when the test images are read."""

import json
import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.interrupted import assert_same_run, fit, lines, stopped
from support.tiny_steppe import tiny

from steppe import InputError, RunError, models
from steppe.analysis.load_run import load
from steppe.config import Data, Optim, Run
from steppe.core.step import Step
from steppe.data.dataset import DataSet
from steppe.methods import parse
from steppe.training import trainer
from steppe.training.checkpoint import file, save_and_resume
from steppe.training.export import export
from steppe.training.factories import make_loader, make_optimizer
from steppe.training.run import CHECKPOINT, CONFIG, RESULT, check_run, digest, format_bytes, load_data, train_run

RUN = Run(epochs=3, batch=50, data=Data(train=200, test=60, size=18, augment=("cutmix",)), optim=Optim(lr=1e-3))


@pytest.fixture(scope="module")
def images() -> DataSet:
    return load_data(RUN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: DataSet) -> tuple[dict, Path]:
    return fit(RUN, tmp_path_factory.mktemp("finished"), images)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, images: DataSet) -> Path:
    return stopped(RUN, tmp_path_factory.mktemp("stopped"), images)


@pytest.fixture
def half_trained(stopped_once: Path, tmp_path: Path) -> Path:
    """A run that was stopped after two of three epochs, to be damaged or resumed."""
    return shutil.copytree(stopped_once, tmp_path / stopped_once.name)


def test_a_run_leaves_its_configuration_metrics_checkpoint_and_result(finished):
    result, folder = finished
    assert result["status"] == "ok"
    assert (result["epochs"], result["steps"]) == (3, 12)
    assert result["passes"] == {"forward": 1.0, "backward": 1.0, "updates": 1.0}
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3]
    best = max(lines(folder), key=lambda m: (m["val_accuracy"], -m["val_loss"]))
    assert result["test"]["best"]["epoch"] == best["epoch"]
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "timing.jsonl", "checkpoint.safetensors", "result.json",
        f"best-{best['epoch']}.safetensors",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    for line, step in zip(lines(folder), (3, 7, 11), strict=True):  # the rate of each epoch's last step
        assert line["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * step / 12)))


@pytest.mark.parametrize("keep", [False, True])
def test_a_finished_run_keeps_what_export_and_diagnosis_need(keep, tmp_path, images):
    """Of one that ends before its result, the rest is made from the last checkpoint."""
    run = replace(RUN, epochs=1, keep=keep, method="ema:decay=0.9")
    assert digest(run) == digest(replace(run, keep=False))
    result, folder = fit(run, tmp_path, images)
    saved = file.read(folder / CHECKPOINT)
    kinds = {"net", "state", "optimizer", "generators"} if keep else {"net", "state"}
    assert {name.partition(".")[0] for name in saved.tensors} == kinds
    (folder / RESULT).unlink()
    again = train_run(run, folder, images)
    assert {k: again[k] for k in ("test", "val", "steps", "passes")} == {
        k: result[k] for k in ("test", "val", "steps", "passes")
    }
    for which in ("best", "last"):
        assert load(folder, which, images).epoch == 1


@pytest.mark.parametrize("command", [export, load])
def test_what_only_reads_a_run_does_not_advise_to_delete_its_checkpoint(command, finished, tmp_path, images):
    folder = shutil.copytree(finished[1], tmp_path / finished[1].name)
    arguments = [folder, tmp_path / "flat"] if command is export else [folder, "best"]
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        InputError, match=r"is damaged \(.*\); name another run, or delete this run's folder"
    ) as error:
        command(*arguments)
    assert file.REMEDY not in str(error.value)
    (folder / CONFIG).write_text("{}")
    with pytest.raises(
        InputError, match="config.json is damaged: it has no method; give the folder of another run$"
    ):
        command(*arguments)


def test_the_test_images_are_read_twice_after_training_and_the_caller_s_rng_is_unchanged(
    tmp_path, images, monkeypatch
):
    evaluated = []
    evaluate = trainer.evaluate

    def recorded(run, method, step, data, part, goal):
        evaluated.append("test" if part is images.test else "val")
        return evaluate(run, method, step, data, part, goal)

    monkeypatch.setattr(trainer, "evaluate", recorded)
    before = torch.get_rng_state()
    fit(RUN, tmp_path, images)
    assert evaluated == ["val"] * 3 + ["test"] * 2
    assert torch.equal(before, torch.get_rng_state())


def test_methods_of_one_seed_have_the_same_initial_weights_and_batches(tmp_path, images):
    """At learning rate zero only the clean pass determines the first epoch's loss."""
    losses = set()
    for method in ("plain", "sam", "sadt-v2", "repeat-step"):
        run = replace(RUN, method=method, epochs=1, optim=Optim(lr=0.0))
        losses.add(lines(fit(run, tmp_path, images)[1])[0]["train_loss"])
    assert len(losses) == 1


# -- resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("sadt-v1", "fp32"),
        ("sadt-v2+agc", "bf16"),
        ("plain", "fp64"),
        ("saf:past=1,T=2,lam=5", "fp32"),
        ("sam+ema:decay=0.9", "fp32"),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(method, precision, tmp_path, images):
    run = replace(RUN, method=method, precision=precision)
    whole = fit(run, tmp_path / "whole", images)
    stopped(run, tmp_path / "parts", images)
    assert_same_run(fit(run, tmp_path / "parts", images), whole)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    weights = file.read(whole[1] / CHECKPOINT).part("net")
    assert all(t.dtype == dtype for k, t in weights.items() if "num_batches" not in k)


def test_the_loss_scale_is_resumed(tmp_path, images, monkeypatch):
    """Three skipped steps halve it three times; the resumed part must continue from there."""
    skip_steps(monkeypatch, {0, 1, 2})
    run = replace(RUN, precision="fp16")
    stopped(run, tmp_path, images)
    folder = fit(run, tmp_path, images)[1]
    assert file.read(folder / CHECKPOINT).data["scaler"]["scale"] == 65536 / 8


# -- budgets and schedules --------------------------------------------------------------------------------------


def test_equal_gradients_give_every_method_the_same_number_of_evaluations(tmp_path, images):
    counts = {}
    for method in ("plain", "sam", "sadt-v2"):
        run = replace(RUN, method=method, match="gradients", epochs=4)
        result, _ = fit(run, tmp_path, images)
        counts[method] = result["steps"] * result["passes"]["backward"]
    assert counts["plain"] == counts["sam"] == 16
    assert 16 <= counts["sadt-v2"] < 16 + 3  # the last step may exceed the budget


def test_equal_seconds_end_in_time(tmp_path, images):
    result, _ = fit(replace(RUN, match="seconds", seconds=1.0), tmp_path, images)
    assert 1.0 <= result["seconds"] < 2.0
    assert result["epochs"] > 1


@pytest.mark.parametrize(
    ("method", "match", "steps", "gradients"),
    [
        ("sam:rho=linear(0,0.1,0.5)", "epochs", 12, 1 + 11 * 2),  # rho is 0 in the first step
        ("sam:start=0.5,every=2", "epochs", 12, 12 + 3),
        ("sam:start=0.5", "gradients", 9, 12),  # 6 plain steps spend the first half, 3 of SAM the second
    ],
)
def test_a_share_in_a_schedule_is_a_share_of_the_budget(method, match, steps, gradients, tmp_path, images):
    result = fit(replace(RUN, method=method, match=match), tmp_path, images)[0]
    assert result["steps"] == steps
    assert result["passes"]["backward"] == pytest.approx(gradients / steps)


def test_micro_batches_change_nothing_without_batchnorm_and_groups_of_m_samples_change_the_perturbation(
    tmp_path, images, monkeypatch
):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    run = replace(RUN, model="tiny", method="sam:rho=0.5")
    losses = []
    for change in ({}, {"microbatch": 7}, {"microbatch": 50}, {"m": 10}):
        losses.append([line["train_loss"] for line in lines(fit(replace(run, **change), tmp_path, images)[1])])
    whole, parts, one_part, groups = losses
    assert parts == pytest.approx(whole, rel=1e-6)
    assert one_part == whole
    assert groups[-1] != pytest.approx(whole[-1], rel=1e-4)
    with pytest.raises(InputError, match="one update per step"):
        fit(replace(run, method="two-step", m=10), tmp_path, images)


# -- failure ----------------------------------------------------------------------------------------------------


def skip_steps(monkeypatch, numbers) -> None:
    """Give the steps of these numbers an image of NaN."""
    real = Step.__call__

    def spoiled(self, batch):
        if self.passes.steps in numbers:
            batch.x[0] = math.nan
        return real(self, batch)

    monkeypatch.setattr(Step, "__call__", spoiled)


def test_a_loss_that_is_not_finite_ends_the_run_as_failed_with_its_step(tmp_path, images):
    run = replace(RUN, optim=Optim(name="sgd", lr=1e12, schedule="constant"))
    result, folder = fit(run, tmp_path, images)
    assert (result["status"], result["test"]) == ("failed", None)
    assert "not finite" in result["message"] and "step" in result["message"]
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


def test_a_skipped_step_is_counted_and_training_continues(tmp_path, images, monkeypatch):
    skip_steps(monkeypatch, {1, 2, 5})
    result, folder = fit(RUN, tmp_path, images)
    assert (result["status"], result["skipped"]) == ("ok", 3)
    assert [line["skipped"] for line in lines(folder)] == [2, 3, 3]
    assert all(math.isfinite(line["train_loss"]) for line in lines(folder))


@pytest.mark.parametrize(
    ("skipped", "epochs", "stop", "message"),
    [
        # one sound step ends a row: the second row counts, and it extends over epochs
        (set(range(80)) - {0, 15}, 20, None, "was not finite in 20 steps in a row, up to step 36 (epoch 9)"),
        (set(range(80)) - {0}, 20, 3, "up to step 21 "),
        (set(range(7, 12)), 3, None, "not finite in 5 steps in a row, up to step 12"),
    ],
    ids=["twenty", "with a resume", "at the end"],
)
def test_skipped_steps_in_a_row_fail_the_run(skipped, epochs, stop, message, tmp_path, images, monkeypatch):
    run = replace(RUN, epochs=epochs)
    skip_steps(monkeypatch, skipped)
    if stop:
        stopped(run, tmp_path, images, stop)
    result, folder = fit(run, tmp_path, images)
    assert result["status"] == "failed"
    assert message in result["message"]
    assert result["skipped"] == len(skipped & set(range(result["steps"])))
    if epochs == 20:
        assert lines(folder)[1]["train_loss"] is None  # an epoch without a sound step has no mean


# -- files ------------------------------------------------------------------------------------------------------


def test_the_folder_and_the_checkpoint_of_another_run_are_refused(finished, images, tmp_path):
    _, folder = finished
    other = replace(RUN, seed=5)
    with pytest.raises(InputError, match="belongs to another configuration; choose another folder"):
        train_run(other, folder, images)
    (tmp_path / digest(other)).mkdir()
    shutil.copy(folder / CHECKPOINT, tmp_path / digest(other))
    with pytest.raises(InputError, match=f"belongs to run {folder.name}; delete it"):
        fit(other, tmp_path, images)


def first_weight(tensors):
    return next(k for k in tensors if k.startswith("net."))


@pytest.mark.parametrize(
    "change",
    [
        lambda t, d: (t, {}),
        lambda t, d: (t | {first_weight(t): torch.ones(7)}, d),
        lambda t, d: ({k: v for k, v in t.items() if k != first_weight(t)}, d),
        lambda t, d: (t, d | {"epoch": "many"}),
        lambda t, d: (t, d | {"passes": "x"}),
        lambda t, d: (t, {k: v for k, v in d.items() if k != "skipped"}),
        lambda t, d: (t, d | {"optimizer": d["optimizer"] | {"groups": []}}),
        lambda t, d: (t | {"optimizer.99999.x": torch.ones(2)}, d),
        lambda t, d: (t | {"generators.noise": torch.zeros(3, dtype=torch.uint8)}, d),
        lambda t, d: (t, d | {"shards": 3}),
    ],
    ids=["empty", "shape", "no weight", "epoch", "passes", "skipped", "groups", "state", "generator", "shards"],
)
def test_a_sound_checkpoint_that_does_not_fit_is_one_line(change, half_trained, images):
    """Its checksum is right: another program may have written it."""
    path = half_trained / CHECKPOINT
    saved, names = file.read(path), sorted(half_trained.iterdir())
    file.write(path, file.Checkpoint(*change(dict(saved.tensors), saved.data)))
    with pytest.raises(
        InputError, match=f"^checkpoint {path}.*; delete it to start this run from its beginning"
    ) as e:
        train_run(RUN, half_trained, images)
    assert str(e.value).count("delete it") == 1
    assert sorted(half_trained.iterdir()) == names


@pytest.mark.parametrize("content", ["[1]", "{}", '{"status": "ok"}'])
def test_a_damaged_result_or_configuration_is_named(content, tmp_path, images):
    folder = tmp_path / digest(RUN)
    folder.mkdir()
    (folder / CONFIG).write_text(content)
    with pytest.raises(InputError, match="config.json is damaged.*; delete the folder"):
        train_run(RUN, folder, images)
    (folder / CONFIG).unlink()
    (folder / RESULT).write_text(content)
    with pytest.raises(InputError, match="result.json is damaged.*; delete it, and the run resumes"):
        train_run(RUN, folder, images)


def test_a_full_disk_is_one_line_and_the_checkpoint_survives(half_trained, images):
    """A real limit of file sizes."""
    path = half_trained / CHECKPOINT
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunError, match="File too large; make sure") as caught:
            train_run(RUN, half_trained, images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert not list(half_trained.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vgg17"}, "unknown model 'vgg17'; did you mean"),
        ({"batch": 500}, "batch is 500 and only 200 images"),
        ({"method": "sma"}, "unknown method 'sma'"),
        ({"model": "vgg16-sadt"}, "vgg16-sadt needs images of at least 32x32"),
        ({"microbatch": 1}, "microbatch is 1 .* has BatchNorm"),
        ({"m": 7}, "m is 7, which divides 50 samples .* one is a single sample"),
    ],
)
def test_a_run_that_cannot_start_is_refused_before_training(change, message, images):
    with pytest.raises(InputError, match=message):
        check_run(replace(RUN, **change), images)


def test_derived_seeds_differ_by_purpose_and_seed():
    seeds = {save_and_resume.derive(s, p) for s in range(20) for p in ("init", "data", "method", "dropout 1")}
    assert len(seeds) == 80


def test_bytes_have_a_unit():
    assert [format_bytes(n) for n in (999, 1500, 10_200_000_000)] == ["999 bytes", "1.5 KB", "10.2 GB"]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_optimizer_has_the_epsilon_of_the_run(name: str) -> None:
    optimizer = make_optimizer(Run(optim=Optim(name=name, eps=1e-7)), torch.nn.Linear(2, 2))
    assert [group["eps"] for group in optimizer.param_groups] == [1e-7]


def test_networks_that_are_one_with_equal_views_get_crops_by_default(images: DataSet) -> None:
    for spec, views in (("okdph", ["view 2", "view 3"]), ("sam+okdph:networks=3", ["view 2", "view 3", "view 4"])):
        assert list(next(make_loader(RUN, images, parse(spec)).epoch(1)).extra) == views
    assert not next(make_loader(RUN, images, parse("dml")).epoch(1)).extra
    named = replace(RUN, data=replace(RUN.data, views=("crop-flip",)))
    assert not next(make_loader(named, images, parse("okdph")).epoch(1)).extra
