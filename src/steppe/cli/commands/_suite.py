"""The part of ``steppe compare`` that trains a suite, task by task."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from steppe.cli.console import console, print_error, print_images, print_text
from steppe.config import Study, suites
from steppe.errors import InputError

if TYPE_CHECKING:
    from steppe.experiments import ComparisonRun
    from steppe.experiments.suite import TaskRuns

_CHOICES = ("methods", "datasets", "seeds")
_OF_ALL_TASKS = ("keep", "track", "workers")  # options that change no result


def explicit_settings(add_arguments: Any, command: str) -> dict[str, Any]:
    """Return the options that the command line or its file sets, by name."""
    parser = ArgumentParser()
    add_arguments(parser)
    content: dict[str, Any] = vars(parser.parse_args(shlex.split(command)[2:], defaults=False).as_flat())
    return content


def run_suite(options: Namespace, explicit: dict[str, Any], jobs: int, deadline: float, command: str) -> int:
    """Train what is missing of a suite until the deadline, and report; return 1 if a run failed, also earlier."""
    from steppe import experiments, hardware
    from steppe.cli.commands.report import print_report
    from steppe.cli.progress import Decoding, Display
    from steppe.distributed import collectives
    from steppe.experiments.suite import TaskRuns, write_suite

    suite = suites.load(options.recipe)
    _refuse_others(suite.name, explicit, options.scale)
    if collectives.current_world().size > 1:
        raise InputError("a suite trains each run in one process; start it without torchrun")
    datasets, methods = explicit.get("datasets", ()), explicit.get("methods", ())
    tasks, rows, missing = suite.choose(options.tasks, methods, datasets)
    out, terminal = Path(options.out), console()
    launcher = experiments.Launcher.parse(options.launcher)
    cluster = launcher.cluster(out)
    final = tuple(explicit.get("seeds", suite.final))
    if {*final} & {*suite.tune}:
        taken = min({*final} & {*suite.tune})
        raise InputError(f"seeds is {taken}, a seed of suite {suite.name}'s tuning; give others")
    for task, why in missing.items():
        print_text(terminal, f"task {task} is left out: {why}")
    if not tasks:
        raise InputError(f"no task is left of suite {suite.name}: {next(iter(missing.values()))}")
    shared = {key: explicit[key] for key in _OF_ALL_TASKS if key in explicit}
    tasks = [replace(task, values={**task.values, **shared}) for task in tasks]
    works = [TaskRuns(suite, task, rows, final, out / task.name) for task in tasks]
    for work in works:
        with Decoding(terminal) as progress:
            work.check(progress, retry=options.retry)
        for dataset, about in work.description().items():
            print_images(terminal, f"{work.task.name}: {dataset}", about)
    write_suite(suite, missing, out, command)
    on_processor = cluster is None and hardware.device().type != "cuda"
    workers = jobs or (hardware.cores() if on_processor else 0)
    errors: dict[ComparisonRun, str] = {}
    print_text(terminal, _left(works, workers))
    try:
        for work in works:
            for phase, runs in work.phases():
                plan = work.plan(runs(), options.retry)
                if plan.open:
                    print_text(terminal, f"{work.task.name}, {phase}: {len(plan.open)} of {len(plan.jobs)} runs")
                with Display(len(plan.open), terminal) as display:

                    def progress_of(job: ComparisonRun, news: Any, display: Display = display) -> None:
                        display.update(job.name, news)
                        errors.update({job: news} if isinstance(news, str) else {})

                    experiments.run(plan, workers, experiments.until(deadline, progress_of), cluster)
            work.write(command)
            print_text(terminal, f"{work.task.name} is finished; {_left(works, workers)}")
    except experiments.TimeIsUp:
        print_text(terminal, f"stopped in time; {_left(works, workers)}; the same command goes on")
    finally:
        for work in works:
            work.write(command)
    print_report(out, terminal)
    for job, message in errors.items():
        print_error(f"{job.name}: {message}")
    return int(bool(errors) or any(work.failed() for work in works))


def _refuse_others(name: str, explicit: dict[str, Any], scale: float) -> None:
    """Refuse settings that the suite has for each task."""
    own = {f.name for f in fields(Study)} - {*_CHOICES, *_OF_ALL_TASKS}
    for key, value in explicit.items():
        if key.partition(".")[0] in own:
            raise InputError(
                f"{key} is {value!r:.60} and suite {name} has settings for each task; leave it out, or copy "
                "the suite and give recipe=FILE.yaml"
            )
    if scale != 1:
        raise InputError(
            f"scale is {scale:g} and a suite is not scaled; choose with --tasks, --methods and --seeds"
        )


def _left(works: Sequence[TaskRuns], workers: int) -> str:
    """Return how many runs are left, and about how long they take, from the mean of those that are finished."""
    from steppe.report.formatting import count, duration

    parts = [work.left() for work in works]
    missing, seconds = sum(n for n, _ in parts), [s for _, own in parts for s in own]
    if not missing:
        return "no run is left"
    rest = sum(n * fmean(own or seconds) for n, own in parts) if seconds else None
    about = "" if rest is None else f", about {duration(rest / max(workers, 1))} of training"
    about += f" with {count(workers, 'run')} at a time" if about and workers else ""
    return f"at most {count(missing, 'run')} left{about}"
