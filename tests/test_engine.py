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

from steppe import InputError, RunError, checkpoint, engine, records, trainer
from steppe.config import Data, Optim, Run
from steppe.data.images import DataSet

RUN = Run(epochs=3, batch=50, data=Data(train=200, test=60, size=18, augment=("cutmix",)), optim=Optim(lr=1e-3))


@pytest.fixture(scope="module")
def images() -> DataSet:
    return engine.load_data(RUN)


def fit(run: Run, out: Path, images: DataSet, listen=lambda _: None) -> tuple[dict, Path]:
    folder = out / engine.digest(run)
    return engine.fit(run, folder, images, listen), folder


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

    def stop_in_epoch_two(progress: engine.Progress) -> None:
        if progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(run, tmp_path / "parts", images, stop_in_epoch_two)
    again, parts = fit(run, tmp_path / "parts", images)
    assert again["test"] == result["test"]
    assert lines(parts) == lines(folder)
    a, b = (checkpoint.read(f / engine.CHECKPOINT).tensors for f in (folder, parts))
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


def test_a_folder_of_another_configuration_is_refused(tmp_path, images):
    _, folder = fit(RUN, tmp_path, images)
    other = dataclasses.replace(RUN, seed=5)
    with pytest.raises(InputError, match="belongs to another configuration; choose another folder"):
        engine.fit(other, folder, images)


def test_a_checkpoint_of_another_run_is_refused(tmp_path, images):
    _, folder = fit(RUN, tmp_path, images)
    other = dataclasses.replace(RUN, seed=5)
    place = tmp_path / engine.digest(other)
    place.mkdir()
    (folder / engine.CHECKPOINT).rename(place / engine.CHECKPOINT)
    with pytest.raises(InputError, match=f"belongs to run {folder.name}; delete it"):
        engine.fit(other, place, images)


def test_a_truncated_checkpoint_is_refused_and_kept(tmp_path, images):
    with pytest.raises(Stop):
        fit(RUN, tmp_path, images, stop_at(2))
    path = tmp_path / engine.digest(RUN) / engine.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="is damaged .*delete it to start this run"):
        fit(RUN, tmp_path, images)
    assert path.exists()


def stop_at(epoch: int):
    def listen(progress: engine.Progress) -> None:
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
        engine.fit(RUN, blocked / "run", images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vgg17"}, "unknown model 'vgg17'; did you mean 'vgg16-sadt'"),
        ({"batch": 500}, "batch is 500 and only 200 images"),
        ({"method": "sma"}, "unknown method 'sma'"),
        ({"model": "vgg16-sadt"}, "vgg16-sadt needs images of at least 32x32"),
    ],
)
def test_what_cannot_start_is_said_before_training(change, message, images):
    with pytest.raises(InputError, match=message):
        engine.check(dataclasses.replace(RUN, **change), images)


def test_derived_seeds_differ_by_purpose_and_seed():
    seeds = {engine.derive(s, p) for s in range(20) for p in ("init", "data", "method", "dropout 1")}
    assert len(seeds) == 80
