"""The previous checkpoint is used if the newest is damaged, and only then."""

import logging
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.interrupted import assert_same_run, fit, lines, stopped

from steppe import InputError
from steppe.cli.main import main
from steppe.config import Data, Optim, Run, Study
from steppe.data.dataset import DataSet
from steppe.experiments import prepare
from steppe.training import trainer
from steppe.training.checkpoint import file, save_and_resume
from steppe.training.checkpoint.save_and_resume import CheckpointStore
from steppe.training.run import CHECKPOINT, RESULT, TrainingStatus, load_data, train_run

# a rate at which accuracy goes down at times, so that checkpoints name different best epochs
RUN = Run(
    method="sadt-v1",
    epochs=4,
    batch=50,
    data=Data(train=200, test=60, size=18, augment=("cutmix",)),
    optim=Optim(lr=3e-3),
)


@pytest.fixture(scope="module")
def images() -> DataSet:
    return load_data(RUN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> tuple[dict, Path]:
    return fit(RUN, tmp_path_factory.mktemp("whole"), images)


@pytest.fixture(scope="module")
def stopped_at_three(tmp_path_factory, images) -> Path:
    return stopped(RUN, tmp_path_factory.mktemp("stopped"), images, 3)


@pytest.fixture
def folder(stopped_at_three: Path, tmp_path: Path) -> Path:
    """A run that was stopped after three of four epochs."""
    return shutil.copytree(stopped_at_three, tmp_path / stopped_at_three.name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_used(damage, whole, images, folder, caplog):
    before = file.read(folder / save_and_resume.BEFORE)
    assert before.data["epoch"] == 2
    damage(folder / CHECKPOINT)
    with caplog.at_level(logging.WARNING):
        result = train_run(RUN, folder, images)
    (message,) = (r.getMessage() for r in caplog.records)
    assert message.startswith(f"checkpoint {folder / CHECKPOINT} is damaged (")
    assert message.endswith(
        "it is kept as checkpoint-damaged.safetensors, and the run goes on from the one before it, of epoch 2"
    )
    assert_same_run((result, folder), whole)
    assert names(folder) == names(whole[1]) | {save_and_resume.DAMAGED}


@pytest.mark.parametrize(("epoch", "links"), [(2, True), (3, True), (4, True), (3, False)])
def test_a_stopped_run_has_the_previous_checkpoint_and_all_best_weights_that_are_named(
    epoch, links, images, tmp_path, monkeypatch
):
    """Also on a file system without links."""

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    folder = stopped(RUN, tmp_path, images, epoch)
    assert file.read(folder / save_and_resume.BEFORE).data["epoch"] == epoch - 1
    for name in (CHECKPOINT, save_and_resume.BEFORE):
        best = file.read(folder / name).data["best"]["epoch"]
        assert file.read(folder / f"best-{best}.safetensors").data["epoch"] == best
    assert len(list(folder.glob("best-*"))) <= 2
    assert not list(folder.glob("*.tmp"))


def test_epochs_shorter_than_the_interval_share_a_checkpoint_and_a_killed_run_ends_with_the_same_bits(
    tmp_path, monkeypatch
):
    """An epoch takes 0.4 of the interval: the first, the fourth and the seventh are saved, and the last."""
    small = Data(train=60, val=40, test=30, size=8, augment=())
    sgd = Optim(name="sgd", lr=0.3, schedule="constant")
    run = Run(method="ema:decay=0.5", model="mlp-16x1", epochs=8, batch=20, data=small, optim=sgd)
    images = load_data(run)
    undisturbed = fit(run, tmp_path / "undisturbed", images)
    clock, saved = iter(range(4, 1000, 4)), []
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: now[0]))
    monkeypatch.setenv("STEPPE_SAVE_SECONDS", "10")
    now = [0.0]

    def tick(status: TrainingStatus) -> None:
        if status.val_accuracy is not None:
            now[0] = float(next(clock))

    save = CheckpointStore.save
    monkeypatch.setattr(
        CheckpointStore,
        "save",
        lambda store, content, **kw: (saved.append(content["epoch"]), save(store, content, **kw)),
    )
    assert_same_run(fit(run, tmp_path / "intervals", images, tick), undisturbed)
    assert saved == [1, 4, 7, 8]
    assert undisturbed[0]["test"]["best"]["epoch"] == 6  # which was not saved when it ended

    monkeypatch.setenv("STEPPE_SAVE_SECONDS", "inf")
    folder = stopped(run, tmp_path / "stopped", images, 6)
    assert file.read(folder / CHECKPOINT).data["epoch"] == 1 and len(lines(folder)) == 6
    assert_same_run(fit(run, tmp_path / "stopped", images), undisturbed)


@pytest.mark.parametrize("text", ["soon", "", "nan"])
def test_an_interval_that_is_no_number_is_one_line_before_training(text, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STEPPE_SAVE_SECONDS", text)
    assert main(["train", "--epochs", "1", "--data.train", "60", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"STEPPE_SAVE_SECONDS is {text!r}; give a number of seconds, or 0" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("previous", ["damaged", "missing"])
def test_a_damaged_checkpoint_without_a_sound_previous_one_is_refused_and_kept(previous, images, folder):
    cut(folder / CHECKPOINT)
    if previous == "damaged":
        cut(folder / save_and_resume.BEFORE)
    else:
        (folder / save_and_resume.BEFORE).unlink()
    before = names(folder)
    also = ", and so is the one before it" if previous == "damaged" else ""
    with pytest.raises(InputError, match=rf"is damaged \(.*\){also}; delete it to start this run"):
        train_run(RUN, folder, images)
    assert names(folder) == before
    # the remedy of the message works, and the previous checkpoint is not used then
    (folder / CHECKPOINT).unlink()
    train_run(RUN, folder, images)
    assert names(folder) >= {RESULT}
    assert save_and_resume.BEFORE not in names(folder)


def test_a_run_whose_checkpoint_was_deleted_starts_anew(whole, images, folder):
    (folder / CHECKPOINT).unlink()
    epochs = []
    result = train_run(RUN, folder, images, lambda status: epochs.append(status.epoch))
    assert min(epochs) == 1
    assert_same_run((result, folder), whole)


def test_a_comparison_reports_the_damage_before_its_workers_start(folder, tmp_path, caplog):
    cut(folder / CHECKPOINT)
    before = (folder / save_and_resume.BEFORE).read_bytes()
    folder = shutil.move(folder, tmp_path / "runs" / folder.name)
    study = Study(methods=("sadt-v1",), seeds=(0,), epochs=4, batch=50, data=RUN.data, optim=RUN.optim)
    with caplog.at_level(logging.WARNING):
        (job,) = prepare(study, tmp_path, "steppe compare").open
    assert "goes on from the one before it, of epoch 2" in caplog.text
    assert job.folder == folder and (folder / CHECKPOINT).read_bytes() == before
    cut(folder / CHECKPOINT)
    with pytest.raises(InputError, match="checkpoint.safetensors is damaged"):
        prepare(study, tmp_path, "steppe compare")


def test_a_checkpoint_without_the_optimizer_s_state_resumes_no_training(images, folder):
    saved = file.read(folder / CHECKPOINT)
    tensors = {name: t for name, t in saved.tensors.items() if not name.startswith("optimizer.")}
    data = {name: value for name, value in saved.data.items() if name != "optimizer"}
    file.write(folder / CHECKPOINT, file.Checkpoint(tensors, data))
    with pytest.raises(InputError, match=r"does not fit this run \('optimizer'\); delete it"):
        train_run(RUN, folder, images)
