"""The checkpoint before the newest: used when the newest is damaged, and never else."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steppe import InputError, records
from steppe.config import Data, Optim, Run
from steppe.data.dataset import DataSet
from steppe.training import run, trainer
from steppe.training.checkpoint import file, store

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
    return run.load_data(RUN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("whole") / run.digest(RUN)
    run.train_run(RUN, folder, images)
    return folder


def stopped(out: Path, images: DataSet, after: int = 3) -> Path:
    """Train, and leave it right after an epoch's checkpoint."""

    def stop(news: run.TrainingStatus) -> None:
        if news.epoch == after and news.val_accuracy is not None:
            raise Stop

    folder = out / run.digest(RUN)
    with pytest.raises(Stop):
        run.train_run(RUN, folder, images, stop)
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def assert_same(folder: Path, other: Path) -> None:
    a, b = (file.read(f / run.CHECKPOINT) for f in (folder, other))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    one, two = (records.read_lines(f / trainer.METRICS) for f in (folder, other))
    assert one == two
    results = [json.loads((f / run.RESULT).read_text()) for f in (folder, other)]
    assert results[0]["test"] == results[1]["test"]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, whole, images, tmp_path, caplog):
    folder = stopped(tmp_path, images)
    before = file.read(folder / store.BEFORE)
    assert before.data["epoch"] == 2
    damage(folder / run.CHECKPOINT)
    with caplog.at_level(logging.WARNING):
        run.train_run(RUN, folder, images)
    (said,) = (r.getMessage() for r in caplog.records)
    assert said.startswith(f"checkpoint {folder / run.CHECKPOINT} is damaged (")
    assert said.endswith(
        "it is kept as checkpoint-damaged.safetensors, and the run goes on from the one before it, of epoch 2"
    )
    assert_same(folder, whole)
    assert names(folder) == names(whole) | {store.DAMAGED}


def test_every_epochs_checkpoint_finds_the_best_weights_that_it_names(images, tmp_path):
    for after in (2, 3, 4):
        folder = stopped(tmp_path / str(after), images, after)
        for name in (run.CHECKPOINT, store.BEFORE):
            epoch = file.read(folder / name).data["best"]["epoch"]
            assert file.read(folder / f"best-{epoch}.safetensors").data["epoch"] == epoch
        assert len(list(folder.glob("best-*"))) <= 2


def test_two_damaged_ones_are_refused_and_kept(images, tmp_path):
    folder = stopped(tmp_path, images)
    cut(folder / run.CHECKPOINT)
    cut(folder / store.BEFORE)
    kept = names(folder)
    with pytest.raises(
        InputError, match=r"is damaged \(.*\), and so is the one before it; delete it to start this run"
    ):
        run.train_run(RUN, folder, images)
    assert names(folder) == kept
    # and what the line says works, without the leftovers of what was there
    (folder / run.CHECKPOINT).unlink()
    run.train_run(RUN, folder, images)
    assert names(folder) >= {run.RESULT}
    assert store.BEFORE not in names(folder)


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_a_sound_file_that_does_not_fit_is_refused_by_its_name(change, images, tmp_path):
    folder = stopped(tmp_path, images, 2)
    path = folder / run.CHECKPOINT
    saved = file.read(path)
    name = next(k for k in saved.tensors if k.startswith("net."))
    others = {k: v for k, v in saved.tensors.items() if k != name}
    spoilt = others | {name: torch.ones(7)} if change == "shape" else others
    file.write(path, file.Checkpoint(spoilt, saved.data))
    kept = names(folder)
    with pytest.raises(InputError) as refused:
        run.train_run(RUN, folder, images)
    assert str(refused.value).startswith(f"checkpoint {path} does not fit this run (")
    assert str(refused.value).count("delete it") == 1
    assert names(folder) == kept


def test_who_deletes_a_checkpoint_begins_anew(whole, images, tmp_path):
    folder = stopped(tmp_path, images)
    (folder / run.CHECKPOINT).unlink()
    epochs = []
    run.train_run(RUN, folder, images, lambda news: epochs.append(news.epoch))
    assert min(epochs) == 1
    assert_same(folder, whole)


def test_it_is_kept_where_the_file_system_knows_no_links(images, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = stopped(tmp_path, images)
    assert file.read(folder / store.BEFORE).data["epoch"] == 2
    assert not [name for name in names(folder) if name.endswith(".tmp")]


def test_a_comparison_says_so_before_its_workers_start_and_ends_with_the_same_bits(whole, images, tmp_path):
    out = tmp_path / "out"
    folder = stopped(out / "runs", images)
    cut(folder / run.CHECKPOINT)
    command = [
        "compare",
        "--methods",
        "sadt-v1",
        "--epochs",
        "4",
        "--batch",
        "50",
        "--seeds",
        "0",
        "--data.train",
        "200",
    ]
    command += ["--data.test", "60", "--data.size", "18", "--data.augment", "cutmix", "--optim.lr", "3e-3"]
    done = subprocess.run(
        [sys.executable, "-m", "steppe", *command, "--jobs", "1", "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("goes on from the one before it, of epoch 2") == 1
    assert_same(folder, whole)
