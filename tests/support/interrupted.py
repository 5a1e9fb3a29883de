"""Trainings that are stopped at an epoch, and the comparison of a resumed run with an undisturbed one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steppe import records
from steppe.config import Run
from steppe.data.dataset import DataSet
from steppe.training import trainer
from steppe.training.checkpoint import file
from steppe.training.run import CHECKPOINT, TrainingStatus, digest, train_run


class Killed(BaseException):
    """Raised in the progress callback, as if the process were killed."""


def fit(run: Run, out: Path, images: DataSet, progress: Callable[..., None] = lambda _: None) -> tuple[dict, Path]:
    folder = out / digest(run)
    return train_run(run, folder, images, progress), folder


def stopped(run: Run, out: Path, images: DataSet, epoch: int = 2) -> Path:
    """Train until this epoch's checkpoint is written; return the run's folder."""

    def stop(status: TrainingStatus) -> None:
        if status.epoch == epoch and status.val_accuracy is not None:
            raise Killed

    with pytest.raises(Killed):
        fit(run, out, images, stop)
    return out / digest(run)


def lines(folder: Path) -> list[dict[str, Any]]:
    return records.read_lines(folder / trainer.METRICS)


def same_tensors(a: Path, b: Path) -> bool:
    """Return whether two checkpoint files have the same tensors."""
    one, two = (dict(file.read(path).tensors) for path in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def assert_same_run(a: tuple[dict, Path], b: tuple[dict, Path]) -> None:
    """Compare results, records and all that the checkpoints hold, except for seconds."""
    assert (a[0]["test"], lines(a[1])) == (b[0]["test"], lines(b[1]))
    one, two = (folder / CHECKPOINT for _, folder in (a, b))
    assert same_tensors(one, two)
    data = file.read(one).data
    assert data == file.read(two).data | {"seconds": data["seconds"]}


def process_with(file: Path) -> int | None:
    """Return the id of the process that has this file open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == str(file) for fd in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    return None
