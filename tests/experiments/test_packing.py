"""How many runs train at a time: by a made-up rate, by real runs, and after one that lacks memory."""

import dataclasses
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.photos import class_folders

from steppe import experiments
from steppe.config import Data, Study
from steppe.data.sources import cache
from steppe.experiments.launchers import _packing, local
from steppe.experiments.launchers._packing import Packing
from steppe.training.run import TrainingStatus


def simulated(
    rate: Callable[[int], float], most: int, seconds: float = 60.0, *, life: float = 1e9, room: int | None = None
) -> tuple[Packing, list[int]]:
    """Return the packing after runs that report every quarter of a second, and the numbers of runs at a time.

    ``rate(n)`` is the rate of n runs together, ``life`` the seconds that a run trains; ``room`` the runs that
    memory has room for. A run begins a second after it is started and reports for the first time then.
    """
    now = [0.0]
    packing = Packing(most, lambda: now[0])
    images: dict[int, float] = {}
    ages: dict[int, float] = {}
    numbers, started = [], 0
    while now[0] < seconds:
        while len(ages) < packing.target:
            ages[started], images[started] = -1.0 - 0.01 * started, 0.0
            started += 1
        training = [run for run, age in ages.items() if age >= 0]
        for run in list(ages):
            if run in training:
                images[run] += rate(len(training)) / len(training) * 0.25
                packing.report(run, int(images[run]), None if room is None else room - len(ages))
            ages[run] += 0.25
            if ages[run] > life:
                del ages[run]
                packing.ended(run)
        now[0] += 0.25
        numbers.append(len(ages))
    return packing, numbers


@pytest.mark.parametrize(
    ("rate", "most", "expected"),
    [
        (lambda n: 1e4 * n, 13, 13),  # every run has a part of the GPU to itself
        (lambda n: 1e4 * n, 1, 1),
        (lambda n: min(1e4 * n, 4.1e4), 64, 4),
        (lambda n: 2e4, 64, 1),  # one run is all that the GPU can do
        (lambda n: 1e4 * n / (1 + (n / 8) ** 2), 64, 8),  # too many runs are slower
        (lambda n: 1e5 * (1 - 0.5**n), 64, 8),  # 16 are not 5 % faster than 8
    ],
)
def test_the_number_grows_while_the_rate_does(rate: Callable[[int], float], most: int, expected: int) -> None:
    packing, numbers = simulated(rate, most)
    assert (packing.target, packing.grows) == (expected, False)
    assert numbers[:16] == [1] * 16  # one run is measured for some seconds
    assert max(numbers) <= min(most, 2 * expected)
    assert numbers[-1] == max(numbers)  # none is killed


def test_memory_and_short_runs() -> None:
    packing, numbers = simulated(lambda n: 1e4 * n, 64, room=6)
    assert packing.target == max(numbers) == 6 and not packing.grows
    assert simulated(lambda n: 1e4 * n, 64, room=1)[0].target == 1
    # runs that end and are replaced within a window: their rates still add up
    assert simulated(lambda n: min(1e4 * n, 8e4), 64, 120.0, life=5.0)[0].target in (8, 16)
    # one trains while the other starts, which takes half as long as the training
    assert simulated(lambda n: 3e4, 64, life=2.0)[0].target == 2


def test_a_run_that_lacks_memory_next_to_others_is_not_its_own_fault() -> None:
    packing = Packing(8, target=4)
    assert not packing.blames("ValueError: a bug (details in error.log)", 4)
    assert not packing.blames("OutOfMemoryError: CUDA out of memory.", 1)
    assert packing.blames("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 4)
    assert (packing.target, packing.grows) == (3, False)
    assert not Packing.fixed(4).blames("OutOfMemoryError: CUDA out of memory.", 4)
    assert Packing.fixed(4).target == 4


def plan(out: Path, dataset: str = "synthetic", epochs: int = 3) -> experiments.ComparisonPlan:
    study = Study(
        methods=("plain", "sam"), datasets=(dataset,), seeds=(0, 1), epochs=epochs, batch=10,
        data=Data(train=60, test=10, size=18),
    )  # fmt: skip
    return experiments.prepare(study, out, "steppe compare")


@pytest.mark.slow
def test_runs_that_are_packed_have_the_records_of_others_and_no_worker_reads_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SMALL", 0)
    monkeypatch.setattr(_packing, "WINDOW", 0.01)
    photos = class_folders(tmp_path / "photos", per_class=60)
    packed, other = (plan(tmp_path / name, f"folder:{photos}") for name in ("packed", "other"))
    shutil.rmtree(photos)
    assert all(data.train.file is not None for grid in (packed, other) for data in grid.sets.values())
    images: list[int] = []

    def progress(job: Any, news: Any) -> None:
        if isinstance(news, TrainingStatus):
            images.append(news.images)

    assert experiments.run(packed, 0, progress) == {}
    assert experiments.run(other, 2, progress) == {}
    assert max(images) == 180
    for a, b in zip(packed.jobs, other.jobs, strict=True):
        assert (a.folder / "metrics.jsonl").read_bytes() == (b.folder / "metrics.jsonl").read_bytes()


def test_a_run_that_lacks_memory_is_trained_when_others_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers whose training is replaced: more than two at a time fail as PyTorch does."""
    grid, active = plan(tmp_path), tmp_path / "active"
    active.mkdir()
    monkeypatch.setattr(_packing, "WINDOW", 0.05)
    monkeypatch.setattr(local, "forkserver_context", lambda *_: multiprocessing.get_context("fork"))
    status = TrainingStatus(1, 0.1, 1.0, 0.5, 100.0, 1.0)

    def train(run: Any, folder: Path, progress: Any, *_: Any, **__: Any) -> Any:
        mine = active / folder.name
        mine.touch()
        for i in range(25):
            if len(list(active.iterdir())) > 2:
                mine.unlink()
                return "OutOfMemoryError: CUDA out of memory. (details in error.log)"
            progress(dataclasses.replace(status, images=100 * i))
            time.sleep(0.02)
        mine.unlink()
        return {"status": "ok"}

    monkeypatch.setattr(local, "train_job", train)
    results: list[Any] = []
    errors = local.launch(grid.jobs, 0, lambda job, news: results.append((job.name, news)), grid.sets)
    assert errors == {}
    assert sorted(name for name, news in results if news == {"status": "ok"}) == sorted(j.name for j in grid.jobs)
