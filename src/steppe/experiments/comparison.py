"""The grid of a comparison: its runs, the checks before the first one, and ``compare.json``."""

import contextlib
import datetime
import logging
import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe import hardware, methods, records
from steppe.config import Run, Study
from steppe.config.run import DataKey
from steppe.core.method import Method
from steppe.data.dataset import DataSet, same_samples
from steppe.distributed import collectives
from steppe.errors import InputError
from steppe.experiments.launchers.cluster import Cluster, launch_on_cluster
from steppe.experiments.launchers.in_process import launch_here
from steppe.experiments.launchers.local import launch
from steppe.experiments.launchers.torchrun import run_in_torchrun
from steppe.experiments.run_lock import ComparisonRun, Progress, file_lock
from steppe.experiments.split_cache import SplitCache
from steppe.training.checkpoint import save_and_resume
from steppe.training.evaluation import of_constant
from steppe.training.factories import make_objective
from steppe.training.run import (
    CHECKPOINT,
    RESULT,
    check_augmentation,
    check_images,
    check_run,
    load_data,
    memory_bytes,
    report_changed_code,
)

COMPARISON = "compare.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison before it runs: its jobs and its folder.

    ``memory`` has the bytes that each method stores per run, ``images`` the description of each data set, ``sets``
    the data sets themselves, each with its first split, by `Run.data_key`, unless all runs are finished.
    """

    study: Study
    out: Path
    jobs: list[ComparisonRun]
    memory: dict[str, int]
    images: dict[str, dict[str, Any]]
    sets: dict[DataKey, DataSet] = field(default_factory=dict, repr=False)

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
    """Check everything that can be checked before training, and write ``compare.json``.

    Loads each data set once (decoded images are cached for the workers), builds each model once and verifies the
    checkpoints of unfinished runs. ``retry`` removes failed runs, so that they run again. While images are decoded
    ``progress(done, total)`` is called. The processes of a torchrun job call this together; rank 0 alone writes.

    Raises:
        InputError: A name, a size, an image or a checkpoint is not usable.
        RunError: The folder cannot be written.
    """
    runs = study.runs()
    jobs = [ComparisonRun(run, out / "runs" / run.digest(), _name(run, study)) for run in runs]
    names: dict[Path, str] = {}
    for job in jobs:
        other = names.setdefault(job.folder, job.name)
        if other != job.name:
            raise InputError(f"methods {other!r} and {job.name!r} are the same run; name one of them")
    world = collectives.current_world()
    description = None if retry else world.on_main_process(lambda: _finished_description(jobs, out))
    try:
        sets = world.main_process_first(lambda: load_and_check(runs, progress))
    except InputError as error:
        if description is None:
            raise
        _log.warning("the runs are finished and need no images (%s)", error)
        grid = ComparisonPlan(study, out, jobs, {}, description)
        world.on_main_process(lambda: records.write_json(out / COMPARISON, _description(grid, command)))
        return grid
    by_name = {name: images for (name, _, _), images in sets.items()}
    if study.resplit and len(study.seeds) > 1:
        world.main_process_first(lambda: _check_splits(runs, sets))
    memory = {run.label: memory_bytes(run, by_name[run.dataset]) for run in runs}
    first = {run.dataset: run for run in reversed(runs)}
    described = {name: describe_images(first[name], images) for name, images in by_name.items()}
    grid = ComparisonPlan(study, out, jobs, memory, described, sets)

    def write() -> None:
        for job in jobs:
            check_saved(job, by_name[job.run.dataset], retry)
        records.make_folder(out)
        records.write_json(out / COMPARISON, _description(grid, command))

    world.on_main_process(write)
    return grid


def describe_images(run: Run, images: DataSet) -> dict[str, Any]:
    """Return what ``compare.json`` has of a data set: images, metric, and the value of a constant output."""
    goal = make_objective(run, images)
    constant = of_constant(goal, images, images.test)
    metric = {"metric": goal.metric.to_dict()}
    return images.description() | metric | ({} if constant is None else {"constant": constant})


def run(
    grid: ComparisonPlan, workers: int, progress: Progress, cluster: Cluster | None = None
) -> dict[ComparisonRun, str]:
    """Train the unfinished runs, ``workers`` at a time, and return the errors by job.

    With 0 workers their number on this machine grows as long as they train on more images per second together.

    They train on this machine, or on a ``cluster`` (see `steppe.experiments.launchers`). If a worker is killed,
    another one resumes its run. The processes of a torchrun job call this together, and all of them train one run
    after another. A failed run does not stop the others.

    Raises:
        InputError: A cluster is given under torchrun.
        RunError: Another process works on the same comparison, or there is no such cluster.
    """
    world = collectives.current_world()
    if world.size > 1 and cluster is not None:
        raise InputError(f"a cluster is given and there are {world.size} processes; start it without torchrun")
    if world.size > 1:
        with world.held_by_main_process(lambda: _lock(grid.out)):
            # read from disk by the main process, which writes there
            names = world.on_main_process(lambda: [job.name for job in grid.open])
            return run_in_torchrun([job for job in grid.jobs if job.name in names], progress)
    with _lock(grid.out):
        if cluster is not None:
            return launch_on_cluster(grid.open, workers, cluster, progress)
        return launch(grid.open, workers, progress, grid.sets)


def run_here(grid: ComparisonPlan, progress: Progress) -> dict[ComparisonRun, str]:
    """Train the unfinished runs in this process, one after another, and return the errors by job.

    Raises RunError if another process works on the same comparison.
    """
    loaded = SplitCache(grid.sets, 1)
    with _lock(grid.out):
        return launch_here(grid.open, progress, loaded.get)


def _finished_description(jobs: list[ComparisonRun], out: Path) -> dict[str, dict[str, Any]] | None:
    """Return the descriptions of the data sets in ``compare.json`` if every run is finished on them, else None."""
    if not all(job.finished for job in jobs):
        return None
    content = None
    with contextlib.suppress(InputError):  # a damaged file is written anew
        content = (records.read_json_if_exists(out / COMPARISON) or {}).get("data")
    names = {job.run.dataset for job in jobs}
    if not isinstance(content, dict) or not names <= content.keys():
        return None
    return {name: content[name] for name in content if name in names}


def _name(run: Run, study: Study) -> str:
    """Return the shortest name that distinguishes a run from the others of its study."""
    parts = [run.label]
    parts += [run.model] if len(study.models) > 1 else []
    parts += [run.dataset] if len(study.datasets) > 1 else []
    return " ".join([*parts, f"seed {run.seed}"])


def load_and_check(runs: list[Run], progress: Callable[[int, int], None] | None) -> dict[DataKey, DataSet]:
    """Load every data set with its first split, and check every combination of data, model and method on it."""
    sets: dict[DataKey, DataSet] = {}
    by_name: dict[str, DataSet] = {}
    for run in runs:
        if run.dataset not in by_name:
            by_name[run.dataset] = sets[run.data_key] = load_data(run, progress)
    if runs:
        check_augmentation(runs[0].data, by_name)
    checked: set[tuple[str, str, str]] = set()
    for run in runs:
        key = (run.dataset, run.model, run.label)
        if key not in checked:
            first = not any(other[:2] == key[:2] for other in checked)
            checked.add(key)
            check_run(run, by_name[run.dataset], first=first)
    return sets


def _check_splits(runs: list[Run], sets: dict[DataKey, DataSet]) -> None:
    """Refuse splits for each seed of a data set that all seeds have alike."""
    for key, images in sets.items():
        other = next(run for run in runs if run.dataset == key[0] and run.data_key != key)
        again = load_data(other)
        if same_samples(images.train, again.train) and same_samples(images.val, again.val):
            raise InputError(
                f"resplit is true and all seeds have the same samples of {key[0]}, its parts are fixed; give "
                "data.train, or leave resplit out"
            )


def check_saved(job: ComparisonRun, images: DataSet, retry: bool) -> None:
    """Refuse damaged checkpoints and results, and runs on other images, before any worker starts."""
    result = job.folder / RESULT
    if result.exists():
        remedy = "delete it, and the run resumes from its checkpoint"
        content = records.read_json(result, remedy)
        if "status" not in content:
            raise InputError(f"{result} is damaged; {remedy}")
        if retry and content["status"] == "failed":
            shutil.rmtree(job.folder)
    elif (job.folder / CHECKPOINT).exists():
        save_and_resume.verify(job.folder)
    check_images(job.folder, images)
    report_changed_code(job.run, job.folder)


def _description(grid: ComparisonPlan, command: str) -> dict[str, Any]:
    names = ("model", "dataset", "seed")
    return {
        "format": records.FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": hardware.environment(),
        "study": grid.study.as_dict(),
        "data": grid.images,
        "runs": [
            {"digest": j.folder.name, "method": j.run.label} | {name: getattr(j.run, name) for name in names}
            for j in grid.jobs
        ],
        "methods": {
            methods.spec_of(method): method_description(method, grid.study.methods, grid.study.optim.decay_start)
            for method in grid.study.methods
        },
    }


def method_description(
    method: Method, among: Collection[Method] = (), decay_start: float | None = None
) -> dict[str, Any]:
    """Return what ``compare.json`` has of a method: summary, hyper-parameters and controls.

    ``among`` are the methods of the comparison; the learning rate decays after the share ``decay_start``.
    """
    names = methods.names_in(methods.spec_of(method))
    return {
        "summary": " ".join(methods.summary(name) for name in names),
        "resolved": str(method),
        "controls": methods.controls_of(method, decay_start, among),
    }


def _lock(out: Path) -> AbstractContextManager[None]:
    """Return the lock of a comparison's folder."""
    busy = f"another steppe compare is at work in {out}; wait for it, or choose another --out"
    return file_lock(out / "compare.lock", busy, "choose a folder you can write with --out")
