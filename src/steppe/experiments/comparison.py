"""The grid of a comparison: which runs there are, what is checked before the first, what is written down."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steppe import hardware, methods, records
from steppe.config import Run, Study
from steppe.data.dataset import DataSet
from steppe.distributed import collectives
from steppe.errors import InputError, RunError
from steppe.experiments.launchers import run_on
from steppe.experiments.launchers.cluster import Cluster
from steppe.experiments.launchers.torchrun import run_in_torchrun
from steppe.experiments.run_lock import Listen
from steppe.training import run as engine
from steppe.training.checkpoint import store

COMPARISON = "compare.json"


@dataclass(frozen=True)
class ComparisonRun:
    """One run of the grid, its folder, and what it is called while it trains."""

    run: Run
    folder: Path
    name: str

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / engine.RESULT).exists()


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison about to run: its jobs and the folder that will hold it.

    ``memory`` has the bytes that each method keeps per run, ``left_out`` the images of each data set that could
    not be read, where that is allowed.
    """

    study: Study
    out: Path
    jobs: list[ComparisonRun]
    memory: dict[str, int]
    left_out: dict[str, tuple[str, ...]]

    @property
    def open(self) -> list[ComparisonRun]:
        """The jobs that are not finished, in order."""
        return [job for job in self.jobs if not job.finished]


def prepare(
    study: Study,
    out: Path,
    command: str,
    *,
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ComparisonPlan:
    """Check everything that can be checked before training, and write down what will run.

    Loads each data set once (decoded images are cached for the workers), builds each model once and verifies
    the checkpoints of unfinished runs. ``retry`` forgets the results of failed runs, so that they run again.
    ``progress`` hears how far images are decoded. The processes of a torchrun job call this together; the lead
    alone writes.

    Raises:
        InputError: A name, a size, an image or a checkpoint is not usable.
        RunError: The folder cannot be written.
    """
    runs = study.runs()
    jobs = [ComparisonRun(run, out / "runs" / engine.digest(run), _name(run, study)) for run in runs]
    by_folder: dict[Path, str] = {}
    for job in jobs:
        twin = by_folder.setdefault(job.folder, job.name)
        if twin != job.name:
            raise InputError(f"methods {twin!r} and {job.name!r} are the same run; name one of them")
    here = collectives.current_world()
    sets = here.main_process_first(lambda: _check(runs, progress))
    memory = {run.method: engine.memory_bytes(run, sets[run.dataset]) for run in runs}
    grid = ComparisonPlan(study, out, jobs, memory, {name: images.skipped for name, images in sets.items()})

    def write_down() -> None:
        for job in jobs:
            _check_saved(job, retry)
        records.make_folder(out)
        records.write_json(out / COMPARISON, _description(grid, sets, command))

    here.on_main_process(write_down)
    return grid


def run(
    grid: ComparisonPlan, workers: int, listen: Listen[ComparisonRun], cluster: Cluster | None = None
) -> dict[ComparisonRun, str]:
    """Run what is not finished, ``workers`` runs at a time; return what went wrong, by job.

    On this machine, or on a ``cluster`` (see `steppe.experiments.launchers`). A run whose worker is killed is
    taken up by another. The processes of a torchrun job call this together and do one run after another, all of
    them on each. Runs that fail do not stop the others.

    Raises:
        InputError: A cluster is given under torchrun.
        RunError: Another process works on the same comparison, or there is no such cluster.
    """
    here = collectives.current_world()
    if here.size > 1 and cluster is not None:
        raise InputError(f"a cluster is given and there are {here.size} processes; start it without torchrun")
    if here.size > 1:
        with here.held_by_main_process(lambda: _alone(grid.out)):
            # what is finished is read from disk, where the lead writes
            chosen = here.on_main_process(lambda: [job.name for job in grid.open])
            return run_in_torchrun([job for job in grid.jobs if job.name in chosen], listen)
    with _alone(grid.out):
        return run_on(cluster, grid.open, workers, listen)


def _name(run: Run, study: Study) -> str:
    """Return the shortest name that tells a run from the others of its study."""
    parts = [run.method]
    parts += [run.model] if len(study.models) > 1 else []
    parts += [run.dataset] if len(study.datasets) > 1 else []
    return " ".join([*parts, f"seed {run.seed}"])


def _check(runs: list[Run], progress: Callable[[int, int], None] | None) -> dict[str, DataSet]:
    """Load every data set and try every distinct model on it."""
    sets: dict[str, DataSet] = {}
    seen: set[tuple[str, str, str]] = set()
    for one in runs:
        methods.parse(one.method)
    for one in runs:
        if one.dataset not in sets:
            sets[one.dataset] = engine.load_data(one, progress)
        key = (one.dataset, one.model, one.method)
        if key not in seen:
            seen.add(key)
            engine.check(one, sets[one.dataset])
    return sets


def _check_saved(job: ComparisonRun, retry: bool) -> None:
    """Refuse damaged checkpoints and results before any worker starts."""
    result = job.folder / engine.RESULT
    if result.exists():
        content = records.read_json(result, "delete it, and the run goes on from its checkpoint")
        if "status" not in content:
            raise InputError(f"{result} is damaged; delete it, and the run goes on from its checkpoint")
        if retry and content["status"] == "failed":
            shutil.rmtree(job.folder)
    elif (job.folder / engine.CHECKPOINT).exists():
        store.verify(job.folder)


def _description(grid: ComparisonPlan, sets: dict[str, DataSet], command: str) -> dict[str, Any]:
    return {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": hardware.environment(),
        "study": asdict(grid.study),
        "data": {name: _data_description(images) for name, images in sets.items()},
        "runs": [
            {
                "digest": job.folder.name,
                "method": job.run.method,
                "model": job.run.model,
                "dataset": job.run.dataset,
                "seed": job.run.seed,
            }
            for job in grid.jobs
        ],
        "methods": {spec: _method_description(spec) for spec in grid.study.methods},
    }


def _data_description(images: DataSet) -> dict[str, Any]:
    return {
        "train": len(images.train.y),
        "val": len(images.val.y),
        "test": len(images.test.y),
        "classes": len(images.classes),
        "channels": images.channels,
        "size": images.size,
        "note": images.note,
        "skipped": list(images.skipped),
    }


def _method_description(spec: str) -> dict[str, Any]:
    method = methods.parse(spec)
    names = [part.partition(":")[0] for part in spec.split("+")]
    return {
        "summary": " ".join(methods.summary(name) for name in names),
        "resolved": repr(method),
        "controls": list(method.controls),
    }


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the comparison's lock; the system releases it when this process ends, however it ends."""
    path = out / "compare.lock"
    try:
        lock = path.open("a")
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; choose a folder you can write with --out"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another steppe compare is at work in {out}; wait for it, or choose another --out"
            ) from None
        yield
