"""One run: budgets, resume, failure, and what is never read before the end."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_steppe import tiny

from steppe import InputError, RunError, models, records
from steppe.config import Data, Optim, Run
from steppe.data.dataset import DataSet
from steppe.training import run as engine
from steppe.training import trainer
from steppe.training.checkpoint import file, store

RUN = Run(epochs=3, batch=50, data=Data(train=200, test=60, size=18, augment=("cutmix",)), optim=Optim(lr=1e-3))


@pytest.fixture(scope="module")
def images() -> DataSet:
    return engine.load_data(RUN)


def fit(run: Run, out: Path, images: DataSet, listen=lambda _: None) -> tuple[dict, Path]:
    folder = out / engine.digest(run)
    return engine.train_run(run, folder, images, listen), folder


def lines(folder: Path) -> list[dict]:
    return records.read_lines(folder / trainer.METRICS)


def test_a_run_leaves_its_configuration_metrics_checkpoint_and_result(tmp_path, images):
    result, folder = fit(RUN, tmp_path, images)
    assert result["status"] == "ok"
    assert (result["epochs"], result["steps"]) == (3, 12)
    assert result["passes"] == {"forward": 1.0, "backward": 1.0, "updates": 1.0}
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3]
    best = max(lines(folder), key=lambda m: (m["val_accuracy"], -m["val_loss"]))
    assert result["test"]["best"]["epoch"] == best["epoch"]
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "timing.jsonl", "checkpoint.safetensors", "result.json",
        f"best-{best['epoch']}.safetensors",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))


def test_the_learning_rate_is_a_cosine_over_the_run(tmp_path, images):
    _, folder = fit(RUN, tmp_path, images)
    for line, step in zip(lines(folder), (3, 7, 11), strict=True):  # the rate of each epoch's last step
        assert line["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * step / 12)))


def test_the_test_images_are_read_twice_after_training(tmp_path, images, monkeypatch):
    seen = []
    real = trainer.evaluate

    def spy(method, step, held, normalize):
        seen.append("test" if held is images.test else "val")
        return real(method, step, held, normalize)

    monkeypatch.setattr(trainer, "evaluate", spy)
    fit(RUN, tmp_path, images)
    assert seen == ["val"] * 3 + ["test"] * 2


def test_methods_of_one_seed_start_from_the_same_weights_and_see_the_same_batches(tmp_path, images, monkeypatch):
    """At learning rate zero nothing but the clean pass decides the first epoch's loss."""
    first = []
    for method in ("plain", "sam", "sadt-v2", "repeat-step"):
        run = dataclasses.replace(RUN, method=method, epochs=1, optim=Optim(lr=0.0))
        _, folder = fit(run, tmp_path, images)
        first.append(lines(folder)[0]["train_loss"])
    assert len(set(first)) == 1


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("method", ["plain", "sam", "sadt-v1", "sadt-v2+agc"])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(method, tmp_path, images):
    run = dataclasses.replace(RUN, method=method)
    result, folder = fit(run, tmp_path / "whole", images)

    def stop_in_epoch_two(progress: engine.TrainingStatus) -> None:
        if progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(run, tmp_path / "parts", images, stop_in_epoch_two)
    again, parts = fit(run, tmp_path / "parts", images)
    assert again["test"] == result["test"]
    assert lines(parts) == lines(folder)
    a, b = (file.read(f / engine.CHECKPOINT).tensors for f in (folder, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert a.keys() == b.keys()


def test_a_finished_run_is_not_done_again(tmp_path, images):
    result, _ = fit(RUN, tmp_path, images)
    again, _ = fit(RUN, tmp_path, images, lambda _: pytest.fail("trained again"))
    assert again == json.loads(json.dumps(result))


def test_training_leaves_the_caller_s_random_stream_alone(tmp_path, images):
    before = torch.get_rng_state()
    fit(dataclasses.replace(RUN, epochs=1), tmp_path, images)
    assert torch.equal(before, torch.get_rng_state())


def test_equal_gradients_give_every_method_the_same_number_of_evaluations(tmp_path, images):
    counts = {}
    for method in ("plain", "sam", "sadt-v2"):
        run = dataclasses.replace(RUN, method=method, match="gradients", epochs=4)
        result, _ = fit(run, tmp_path, images)
        counts[method] = result["steps"] * result["passes"]["backward"]
    assert counts["plain"] == counts["sam"] == 16
    assert 16 <= counts["sadt-v2"] < 16 + 3  # the last step may go over


def test_equal_seconds_end_in_time(tmp_path, images):
    result, _ = fit(dataclasses.replace(RUN, match="seconds", seconds=1.0), tmp_path, images)
    assert 1.0 <= result["seconds"] < 2.0
    assert result["epochs"] > 1


def test_a_loss_that_is_not_finite_ends_the_run_as_failed_with_its_step(tmp_path, images):
    run = dataclasses.replace(RUN, optim=Optim(name="sgd", lr=1e12, schedule="constant"))
    result, folder = fit(run, tmp_path, images)
    assert result["status"] == "failed"
    assert result["test"] is None
    assert "not finite" in result["message"]
    assert "step" in result["message"]
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


def with_skips(monkeypatch, skips) -> None:
    """Let the step of these numbers see a loss that is not finite, through the real step."""
    real = trainer.Trainer._in_parts

    def spoiled(self, batch, number):
        batch = real(self, batch, number)
        if self.steps in skips:
            batch.x[0] = math.nan
        return batch

    monkeypatch.setattr(trainer.Trainer, "_in_parts", spoiled)


def test_a_skipped_step_is_counted_and_training_goes_on(tmp_path, images, monkeypatch):
    with_skips(monkeypatch, {1, 2, 5})
    result, folder = fit(RUN, tmp_path, images)
    assert result["status"] == "ok"
    assert result["skipped"] == 3
    assert [line["skipped"] for line in lines(folder)] == [2, 3, 3]
    assert all(math.isfinite(line["train_loss"]) for line in lines(folder))


def test_twenty_skipped_steps_in_a_row_end_the_run(tmp_path, images, monkeypatch):
    """One sound step ends a row: the row that counts is the second one, and goes across epochs."""
    run = dataclasses.replace(RUN, epochs=20)
    with_skips(monkeypatch, set(range(80)) - {0, 15})
    result, folder = fit(run, tmp_path, images)
    assert result["status"] == "failed"
    assert result["message"] == ("loss or gradient was not finite in 20 steps in a row, up to step 36 (epoch 9)")
    assert result["skipped"] == 34
    assert lines(folder)[1]["train_loss"] is None  # an epoch without a sound step has no mean


def test_a_row_of_skipped_steps_goes_on_where_a_run_was_stopped(tmp_path, images, monkeypatch):
    run = dataclasses.replace(RUN, epochs=20)
    with_skips(monkeypatch, set(range(80)) - {0})
    with pytest.raises(Stop):
        fit(run, tmp_path, images, stop_at(3))
    result, _ = fit(run, tmp_path, images)
    assert "up to step 21 " in result["message"]


def test_a_run_that_ends_in_skipped_steps_is_failed(tmp_path, images, monkeypatch):
    with_skips(monkeypatch, set(range(7, 12)))
    result, _ = fit(RUN, tmp_path, images)
    assert result["status"] == "failed"
    assert "not finite in 5 steps in a row, up to step 12" in result["message"]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64"])
def test_a_run_in_another_precision_learns_and_goes_on_bit_for_bit(precision, tmp_path, images):
    run = dataclasses.replace(RUN, precision=precision, method="sam", epochs=4)
    result, folder = fit(run, tmp_path / "whole", images)
    assert result["status"] == "ok"
    assert lines(folder)[-1]["train_loss"] < lines(folder)[0]["train_loss"]
    with pytest.raises(Stop):
        fit(run, tmp_path / "parts", images, stop_at(2))
    again, parts = fit(run, tmp_path / "parts", images)
    assert again["test"] == result["test"]
    assert lines(parts) == lines(folder)
    saved = file.read(folder / engine.CHECKPOINT)
    assert saved.data == file.read(parts / engine.CHECKPOINT).data | {"seconds": saved.data["seconds"]}
    assert ("scale" in saved.data["scaler"]) == (precision == "fp16")
    wide = torch.float64 if precision == "fp64" else torch.float32
    assert all(t.dtype == wide for k, t in saved.part("net").items() if "num_batches" not in k)


@pytest.mark.parametrize(
    "method", ["saf:past=1,T=2,lam=5", "sam+ema:decay=0.9", "looksam:k=3", "swa:start=0.4", "mesa:lam=5"]
)
def test_what_a_method_remembers_is_resumed_and_deployed_bit_for_bit(method, tmp_path, images):
    run = dataclasses.replace(RUN, method=method, epochs=4)
    result, folder = fit(run, tmp_path / "whole", images)
    with pytest.raises(Stop):
        fit(run, tmp_path / "parts", images, stop_at(3))
    again, parts = fit(run, tmp_path / "parts", images)
    assert again["test"] == result["test"]
    assert lines(parts) == lines(folder)
    a, b = (file.read(f / engine.CHECKPOINT).part("state") for f in (folder, parts))
    assert len(a)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_scale_is_resumed(tmp_path, images, monkeypatch):
    """Three skips halve it three times; the part after the stop must know."""
    with_skips(monkeypatch, {0, 1, 2})
    run = dataclasses.replace(RUN, precision="fp16")
    with pytest.raises(Stop):
        fit(run, tmp_path, images, stop_at(2))
    _, folder = fit(run, tmp_path, images)
    assert file.read(folder / engine.CHECKPOINT).data["scaler"]["scale"] == 65536 / 8


def test_microbatches_of_a_network_without_batchnorm_change_nothing(tmp_path, images, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    losses = []
    for microbatch in (None, 7, 50):
        run = dataclasses.replace(RUN, model="tiny", method="sam", microbatch=microbatch)
        losses.append([line["train_loss"] for line in lines(fit(run, tmp_path, images)[1])])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == losses[0]


def test_m_is_passed_on(tmp_path, images, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    run = dataclasses.replace(RUN, model="tiny", method="sam:rho=0.5")
    whole, small = (fit(dataclasses.replace(run, m=m), tmp_path, images)[1] for m in (None, 10))
    assert lines(whole)[-1]["train_loss"] != lines(small)[-1]["train_loss"]
    with pytest.raises(InputError, match="one update per step"):
        fit(dataclasses.replace(run, method="two-step", m=10), tmp_path, images)


def test_a_share_of_the_training_in_a_schedule_is_a_share_of_its_steps(tmp_path, images):
    """12 steps: rho grows over the first 6; every second step of the last 6 is SAM's, with two passes."""
    run = dataclasses.replace(RUN, method="sam:rho=linear(0,0.1,0.5)")
    assert fit(run, tmp_path, images)[0]["passes"]["backward"] == pytest.approx((1 + 11 * 2) / 12)
    run = dataclasses.replace(RUN, method="sam:start=0.5,every=2")
    assert fit(run, tmp_path, images)[0]["passes"]["backward"] == pytest.approx((12 + 3) / 12)


def test_a_share_is_of_the_budget_whatever_that_counts(tmp_path, images):
    """12 gradients: 6 plain steps spend the first half, 3 of SAM the second."""
    run = dataclasses.replace(RUN, method="sam:start=0.5", match="gradients")
    result = fit(run, tmp_path, images)[0]
    assert result["steps"] == 9
    assert result["passes"]["backward"] == pytest.approx(12 / 9)


def test_what_was_written_before_there_were_these_settings_is_still_read(tmp_path, images):
    with pytest.raises(Stop):
        fit(RUN, tmp_path, images, stop_at(2))
    folder = tmp_path / engine.digest(RUN)
    config = json.loads((folder / "config.json").read_text())
    for name in ("microbatch", "m", "sync", "parallel", "compile"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    saved = file.read(folder / engine.CHECKPOINT)
    older = {k: v for k, v in saved.data.items() if k not in ("scaler", "skipped_in_a_row")}
    file.write(folder / engine.CHECKPOINT, file.Checkpoint(saved.tensors, older))
    whole, _ = fit(RUN, tmp_path / "whole", images)
    assert fit(RUN, tmp_path, images)[0]["test"] == whole["test"]


def test_a_folder_of_another_configuration_is_refused(tmp_path, images):
    _, folder = fit(RUN, tmp_path, images)
    other = dataclasses.replace(RUN, seed=5)
    with pytest.raises(InputError, match="belongs to another configuration; choose another folder"):
        engine.train_run(other, folder, images)


def test_a_checkpoint_of_another_run_is_refused(tmp_path, images):
    _, folder = fit(RUN, tmp_path, images)
    other = dataclasses.replace(RUN, seed=5)
    place = tmp_path / engine.digest(other)
    place.mkdir()
    (folder / engine.CHECKPOINT).rename(place / engine.CHECKPOINT)
    with pytest.raises(InputError, match=f"belongs to run {folder.name}; delete it"):
        engine.train_run(other, place, images)


def test_a_truncated_checkpoint_is_refused_and_kept(tmp_path, images):
    with pytest.raises(Stop):
        fit(RUN, tmp_path, images, stop_at(2))
    path = tmp_path / engine.digest(RUN) / engine.CHECKPOINT
    path.with_name(store.BEFORE).unlink()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="is damaged .*delete it to start this run"):
        fit(RUN, tmp_path, images)
    assert path.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t, d: (t, {}),
        lambda t, d: (t, d | {"epoch": "many"}),
        lambda t, d: (t, d | {"passes": "x"}),
        lambda t, d: (t, d | {"optimizer": d["optimizer"] | {"groups": []}}),
        lambda t, d: (t | {"optimizer.99999.x": torch.ones(2)}, d),
        lambda t, d: (t | {"generators.noise": torch.zeros(3, dtype=torch.uint8)}, d),
        lambda t, d: (t, d | {"shards": 3}),
    ],
    ids=["empty", "epoch", "passes", "groups", "state", "stream", "shards"],
)
def test_a_sound_checkpoint_that_fits_no_run_is_one_line(wrong, tmp_path, images):
    """Whoever wrote it could make the checksum too."""
    with pytest.raises(Stop):
        fit(RUN, tmp_path, images, stop_at(2))
    path = tmp_path / engine.digest(RUN) / engine.CHECKPOINT
    saved = file.read(path)
    file.write(path, file.Checkpoint(*wrong(dict(saved.tensors), saved.data)))
    with pytest.raises(InputError, match=f"{path}.*; delete it to start this run from its beginning"):
        fit(RUN, tmp_path, images)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"status": "ok"}'])
def test_a_result_or_configuration_that_is_none_is_named(content, tmp_path, images):
    folder = tmp_path / engine.digest(RUN)
    folder.mkdir()
    (folder / engine.CONFIG).write_text(content)
    with pytest.raises(InputError, match="config.json is damaged.*; delete the folder"):
        fit(RUN, tmp_path, images)
    (folder / engine.CONFIG).unlink()
    (folder / engine.RESULT).write_text(content)
    with pytest.raises(InputError, match="result.json is damaged.*; delete it, and the run goes on"):
        fit(RUN, tmp_path, images)


def stop_at(epoch: int):
    def listen(progress: engine.TrainingStatus) -> None:
        if progress.epoch == epoch:
            raise Stop

    return listen


def test_a_disk_that_takes_no_more_is_one_line_and_the_checkpoint_survives(tmp_path, images):
    """A real limit on file size, in a process of its own."""
    with pytest.raises(Stop):
        fit(RUN, tmp_path / "runs", images, stop_at(2))
    path = tmp_path / "runs" / engine.digest(RUN) / engine.CHECKPOINT
    before = path.read_bytes()
    arguments = [
        "--epochs", "3", "--batch", "50", "--data.train", "200", "--data.test", "60", "--data.size", "18",
        "--optim.lr", "1e-3", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "steppe", "train", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, images):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(RunError, match="cannot write"):
        engine.train_run(RUN, blocked / "run", images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vgg17"}, "unknown model 'vgg17'; did you mean"),
        ({"batch": 500}, "batch is 500 and only 200 images"),
        ({"method": "sma"}, "unknown method 'sma'"),
        ({"model": "vgg16-sadt"}, "vgg16-sadt needs images of at least 32x32"),
        ({"microbatch": 1}, "microbatch is 1 .* has BatchNorm"),
        ({"m": 7}, "m is 7, which cuts 50 samples .* one is a single sample"),
    ],
)
def test_what_cannot_start_is_said_before_training(change, message, images):
    with pytest.raises(InputError, match=message):
        engine.check(dataclasses.replace(RUN, **change), images)


def test_derived_seeds_differ_by_purpose_and_seed():
    seeds = {engine.derive(s, p) for s in range(20) for p in ("init", "data", "method", "dropout 1")}
    assert len(seeds) == 80
