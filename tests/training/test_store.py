"""The previous checkpoint is used if the newest is damaged, and only then."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from steppe import InputError, records
from steppe.config import Data, Optim, Run, Study
from steppe.data.dataset import DataSet
from steppe.experiments import prepare
from steppe.training import trainer
from steppe.training.checkpoint import file, store
from steppe.training.run import CHECKPOINT, RESULT, TrainingStatus, digest, load_data, train_run

# a rate at which accuracy goes down at times, so that checkpoints name different best epochs
RUN = Run(
    method="sadt-v1",
    epochs=4,
    batch=50,
    data=Data(train=200, test=60, size=18, augment=("cutmix",)),
    optim=Optim(lr=3e-3),
)


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def images() -> DataSet:
    return load_data(RUN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("whole") / digest(RUN)
    train_run(RUN, folder, images)
    return folder


def stopped(out: Path, images: DataSet, after: int = 3) -> Path:
    """Stop a training right after an epoch's checkpoint."""

    def stop(status: TrainingStatus) -> None:
        if status.epoch == after and status.val_accuracy is not None:
            raise Stop

    folder = out / digest(RUN)
    with pytest.raises(Stop):
        train_run(RUN, folder, images, stop)
    return folder


@pytest.fixture(scope="module")
def stopped_at_three(tmp_path_factory, images) -> Path:
    return stopped(tmp_path_factory.mktemp("stopped"), images)


@pytest.fixture
def folder(stopped_at_three: Path, tmp_path: Path) -> Path:
    """A run that was stopped after three of four epochs."""
    return shutil.copytree(stopped_at_three, tmp_path / stopped_at_three.name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def assert_same(folder: Path, other: Path) -> None:
    a, b = (file.read(f / CHECKPOINT) for f in (folder, other))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    one, two = (records.read_lines(f / trainer.METRICS) for f in (folder, other))
    assert one == two
    results = [json.loads((f / RESULT).read_text()) for f in (folder, other)]
    assert results[0]["test"] == results[1]["test"]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_used(damage, whole, images, folder, caplog):
    before = file.read(folder / store.BEFORE)
    assert before.data["epoch"] == 2
    damage(folder / CHECKPOINT)
    with caplog.at_level(logging.WARNING):
        train_run(RUN, folder, images)
    (message,) = (r.getMessage() for r in caplog.records)
    assert message.startswith(f"checkpoint {folder / CHECKPOINT} is damaged (")
    assert message.endswith(
        "it is kept as checkpoint-damaged.safetensors, and the run goes on from the one before it, of epoch 2"
    )
    assert_same(folder, whole)
    assert names(folder) == names(whole) | {store.DAMAGED}


def test_the_best_weights_that_a_checkpoint_names_exist(images, tmp_path):
    for after in (2, 3, 4):
        folder = stopped(tmp_path / str(after), images, after)
        for name in (CHECKPOINT, store.BEFORE):
            epoch = file.read(folder / name).data["best"]["epoch"]
            assert file.read(folder / f"best-{epoch}.safetensors").data["epoch"] == epoch
        assert len(list(folder.glob("best-*"))) <= 2


@pytest.mark.parametrize("previous", ["damaged", "missing"])
def test_a_damaged_checkpoint_without_a_sound_previous_one_is_refused_and_kept(previous, images, folder):
    cut(folder / CHECKPOINT)
    if previous == "damaged":
        cut(folder / store.BEFORE)
    else:
        (folder / store.BEFORE).unlink()
    before = names(folder)
    also = ", and so is the one before it" if previous == "damaged" else ""
    with pytest.raises(InputError, match=rf"is damaged \(.*\){also}; delete it to start this run"):
        train_run(RUN, folder, images)
    assert names(folder) == before
    # the remedy of the message works, and the previous checkpoint is not used then
    (folder / CHECKPOINT).unlink()
    train_run(RUN, folder, images)
    assert names(folder) >= {RESULT}
    assert store.BEFORE not in names(folder)


def test_a_run_whose_checkpoint_was_deleted_starts_anew(whole, images, folder):
    (folder / CHECKPOINT).unlink()
    epochs = []
    train_run(RUN, folder, images, lambda status: epochs.append(status.epoch))
    assert min(epochs) == 1
    assert_same(folder, whole)


def test_the_previous_checkpoint_is_kept_on_a_file_system_without_links(images, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = stopped(tmp_path, images)
    assert file.read(folder / store.BEFORE).data["epoch"] == 2
    assert not [name for name in names(folder) if name.endswith(".tmp")]


def test_a_comparison_reports_the_damage_before_its_workers_start(folder, tmp_path, caplog):
    cut(folder / CHECKPOINT)
    folder = shutil.move(folder, tmp_path / "runs" / folder.name)
    study = Study(methods=("sadt-v1",), seeds=(0,), epochs=4, batch=50, data=RUN.data, optim=RUN.optim)
    with caplog.at_level(logging.WARNING):
        (job,) = prepare(study, tmp_path, "steppe compare").open
    assert "goes on from the one before it, of epoch 2" in caplog.text
    assert job.folder == folder and file.read(folder / CHECKPOINT).data["epoch"] == 2
