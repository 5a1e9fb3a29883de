"""The grid: what runs, under which names, and that two comparisons never share a folder."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from steppe import RunError, compare
from steppe.config import Data, Study

STUDY = Study(
    methods=("plain", "sam"),
    models=("simple-cnn", "simple-cnn-3fc"),
    seeds=(0, 1),
    epochs=1,
    batch=50,
    data=Data(train=100, test=30, size=18),
)


def test_every_run_has_its_own_name_and_folder(tmp_path):
    grid = compare.prepare(STUDY, tmp_path, "steppe compare")
    assert len({job.name for job in grid.jobs}) == len({job.folder for job in grid.jobs}) == 8
    assert grid.jobs[0].name == "plain simple-cnn seed 0"
    assert grid.open == grid.jobs


def test_a_second_comparison_in_the_same_folder_is_refused(tmp_path):
    grid = compare.prepare(STUDY, tmp_path, "steppe compare")
    with (tmp_path / "compare.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another steppe compare is at work in"):
            compare.run(grid, 1, lambda job, news: None)


def test_a_worker_that_dies_takes_nothing_with_it_and_its_run_goes_on_later(tmp_path):
    """One of the two runs is killed from outside as soon as it speaks; the other finishes."""
    study = Study(methods=("plain", "sam"), seeds=(0,), epochs=4, batch=20, data=Data(train=200, test=30, size=18))
    grid = compare.prepare(study, tmp_path, "steppe compare")
    killed = []

    def listen(job, news):
        if job.run.method == "sam" and not killed:
            killed.append(worker_of(job.folder / "lock"))
            os.kill(killed[0], signal.SIGKILL)

    def worker_of(lock: Path) -> int:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if any(os.readlink(fd) == str(lock) for fd in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:
                continue
        raise AssertionError("no process holds the run's lock")

    errors = compare.run(grid, 2, listen)
    assert [job.run.method for job in errors] == ["sam"]
    assert "ended by signal SIGKILL" in next(iter(errors.values()))
    assert [job.run.method for job in grid.open] == ["sam"]
    assert compare.run(grid, 2, lambda job, news: None) == {}
    assert not grid.open
