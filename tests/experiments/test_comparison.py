"""The grid of a comparison: its runs and names, killed workers, and the lock of its folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from support.interrupted import process_with

from steppe import InputError, RunError, experiments, records
from steppe.config import Data, Run, Study
from steppe.experiments import run_lock, split_cache
from steppe.training.run import load_data, train_run

HERE = Path(__file__).parents[1]
STUDY = Study(
    methods=("plain", "sam"),
    models=("simple-cnn", "simple-cnn-3fc"),
    seeds=(0, 1),
    epochs=1,
    batch=50,
    data=Data(train=100, test=30, size=18),
)


def test_every_run_has_its_own_name_and_folder(tmp_path):
    grid = experiments.prepare(STUDY, tmp_path, "steppe compare")
    assert len({job.name for job in grid.jobs}) == len({job.folder for job in grid.jobs}) == 8
    assert grid.jobs[0].name == "plain simple-cnn seed 0"
    assert grid.open == grid.jobs


def test_each_seed_has_a_split_of_its_own_however_it_is_launched(tmp_path):
    study = Study(
        methods=("plain", "sam"), models=("mlp-16x1",), seeds=(3, 5), epochs=2, batch=20, resplit=True,
        data=Data(train=40, test=30, size=8, split_seed=1, augment=()),
    )  # fmt: skip
    grids = [experiments.prepare(study, tmp_path / name, "steppe compare") for name in ("workers", "here")]
    assert experiments.run(grids[0], 2, lambda job, news: None) == {}
    assert experiments.comparison.run_here(grids[1], lambda job, news: None) == {}
    samples = {}
    for job, here in zip(grids[0].jobs, grids[1].jobs, strict=True):
        # the run is that of a comparison with this split alone
        run = Run(method=job.run.label, seed=job.run.seed, model="mlp-16x1", epochs=2, batch=20,
                  data=replace(study.data, split_seed=1 + job.run.seed))  # fmt: skip
        assert run.digest() == job.folder.name
        data = load_data(run)
        train_run(run, tmp_path / "alone" / job.folder.name, data)
        metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (job.folder, here.folder)]
        assert metrics == [(tmp_path / "alone" / job.folder.name / "metrics.jsonl").read_bytes()] * 2
        samples.setdefault(run.seed, []).append([part.x for part in (data.train, data.val, data.test)])
    for one, other in zip(samples[3][0], samples[5][0], strict=True):
        assert one.shape == other.shape and not one.equal(other)
    assert all(a.equal(b) for own in samples.values() for a, b in zip(*own, strict=True))  # alike for all methods
    assert records.load(tmp_path / "here").resplit


def test_what_cannot_be_compared_is_refused_before_anything_trains(tmp_path):
    table = tmp_path / "parts.csv"
    rows = [f"{i % 7},{i % 2},{('train', 'val', 'test')[i % 3]}" for i in range(60)]
    table.write_text("\n".join(["a,y,split", *rows]))
    data = Data(augment=())
    studies = {
        f"all seeds have the same samples of table:{table}": Study(
            methods=("plain",), models=("mlp-8x1",), seeds=(0, 1), batch=10, resplit=True, data=data,
            datasets=("breast-cancer", f"table:{table}:target=y"),
        ),
        "hybrid weights need networks of one architecture": Study(
            methods=("kdcl", "okdph"), models=("mlp-8x1+mlp-9x1",), data=Data(train=64, size=8, augment=())
        ),
    }  # fmt: skip
    for message, study in studies.items():
        with pytest.raises(InputError, match=message):
            experiments.prepare(study, tmp_path / "out", "steppe compare")
    assert not list((tmp_path / "out").rglob("checkpoint*"))


def test_of_many_splits_a_few_are_in_memory(monkeypatch):
    runs = Study(methods=("plain", "sam"), seeds=(0, 1, 2, 3), resplit=True, data=Data(train=40, size=8)).runs()
    loaded = []
    monkeypatch.setattr(split_cache, "load_data", lambda run: loaded.append(run.data.split_seed) or object())
    splits = split_cache.SplitCache({runs[0].data_key: object()}, 2)
    samples = [splits.get(run) for run in runs]
    assert loaded == [1, 2, 3] and samples[::2] == samples[1::2] and len(set(samples)) == 4
    assert splits.get(runs[4]) is samples[4] and loaded == [1, 2, 3]
    splits.get(runs[2])
    assert loaded == [1, 2, 3, 1]


def test_a_second_comparison_in_the_same_folder_is_refused(tmp_path):
    grid = experiments.prepare(STUDY, tmp_path, "steppe compare")
    with (tmp_path / "compare.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another steppe compare is at work in"):
            experiments.run(grid, 1, lambda job, news: None)


@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_whose_worker_is_killed_is_resumed_by_another_up_to_three_times(tmp_path, kills):
    """One of two runs is killed as soon as it reports, once or always; the other one finishes."""
    study = Study(methods=("plain", "sam"), seeds=(0,), epochs=4, batch=20, data=Data(train=200, test=30, size=18))
    grid = experiments.prepare(study, tmp_path, "steppe compare")
    killed: list[int] = []

    def progress(job, news):
        if job.run.label == "sam" and len(killed) < kills and not isinstance(news, str):
            worker = process_with(job.folder / "lock")
            assert worker, "no process holds the run's lock"
            if worker not in killed:
                killed.append(worker)
                os.kill(worker, signal.SIGKILL)

    errors = experiments.run(grid, 2, progress)
    assert len(killed) == kills
    assert [job.run.label for job in errors] == (["sam"] if kills == 3 else [])
    assert [job.run.label for job in grid.open] == (["sam"] if kills == 3 else [])
    if errors:
        assert "gave up after 3 workers were killed (last: SIGKILL)" in next(iter(errors.values()))
        assert experiments.run(grid, 2, lambda job, news: None) == {}
        assert not grid.open


@pytest.mark.slow
def test_a_low_limit_of_open_files_is_one_line(tmp_path):
    """The limit is set after all imports, so that the fork server meets it."""
    arguments = ["compare", "--out", str(tmp_path), "--methods", "plain", "sam", "--seeds", "0", "--epochs", "1"]
    small = ["--data.train", "100", "--data.test", "30", "--data.size", "18", "--batch", "50"]
    ended = subprocess.run(
        [sys.executable, "-m", "faults.starved", *arguments, *small],
        env=os.environ | {"FAULTS_FILES": "14", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "error: too many files are open" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, None], ids=str)
def test_a_file_system_without_locks_is_reported_once(number, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    none = None if number is None else types.SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(run_lock, "fcntl", none)
    run_lock._warn_no_locks.cache_clear()
    for name in ("a", "b"):
        with run_lock.locked_run(tmp_path / name):
            assert (tmp_path / name / "lock").exists()
    assert len(caplog.messages) == 1 and "start no second command on the same runs" in caplog.messages[0]


def test_another_error_of_a_lock_is_one_line(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    with (
        pytest.raises(RunError, match="^cannot lock .*lock: Input/output error; make sure"),
        run_lock.locked_run(tmp_path),
    ):
        pass
