"""``steppe compare``: train methods side by side, and report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.commands._suite import explicit_settings, run_suite
from steppe.cli.console import console, print_error, print_images, print_memory, print_text
from steppe.cli.options import add_config, configuration, name_code
from steppe.config import Study, demo, suites
from steppe.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

# fields that may be set in the demo
_OF_DEMO = ("methods", "seeds", "resplit", "threads", "track", "workers", "keep")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at a time; 0: cores / threads, or measured on a GPU"
    )
    parser.add_argument(
        "--launcher", type=str, default="local", help="where runs train: local, ray or slurm, with settings"
    )
    parser.add_argument(
        "--within", type=float, default=None, help="stop after so many seconds; the same command goes on"
    )
    parser.add_argument("--tasks", type=str, nargs="+", default=[], help="tasks of a suite; all if not given")
    parser.add_argument("--retry", action=ActionYesNo, default=False, help="run failed runs again")
    add_config(parser, Study, "out", "folder of the comparison")


def run(options: Namespace, command: str) -> int:
    """Train the runs that are not finished, print and write the report; return 1 if a run failed, also earlier."""
    started = time.monotonic()
    if options.jobs < 0:
        raise InputError(f"jobs is {options.jobs}; give 0 (as many as fit) or more")
    if options.within is not None and not options.within > 0:
        raise InputError(f"within is {options.within:g}; give a number of seconds above 0, or leave it out")
    deadline = math.inf if options.within is None else started + options.within
    if suites.is_suite(options.recipe):
        return run_suite(options, explicit_settings(add_arguments, command), options.jobs, deadline, command)
    if options.tasks:
        raise InputError(f"tasks is {' '.join(options.tasks)} and there is no suite; add recipe=small-suite")
    from steppe import experiments, hardware, records
    from steppe.cli.commands.report import print_report
    from steppe.cli.progress import Decoding, Display
    from steppe.distributed import collectives
    from steppe.report.formatting import count

    world = collectives.current_world()
    if world.size > 1 and options.within is not None:
        raise InputError(f"within is {options.within:g} and there are {world.size} processes; leave it out")
    study = _study(options, command, terminal := console())
    launcher = experiments.Launcher.parse(options.launcher)
    cluster = launcher.cluster(Path(options.out))
    with Decoding(terminal) as progress:
        grid = experiments.prepare(study, Path(options.out), command, retry=options.retry, progress=progress)
    todo, jobs = grid.open, options.jobs
    if not jobs and launcher.name == "local" and hardware.device().type != "cuda":
        jobs = max(1, hardware.cores() // study.threads)
    if world.size > 1:
        at_once = f"1 (on {world.size} processes)"
    elif jobs:
        at_once = str(min(jobs, max(len(todo), 1)))
    else:
        local = launcher.name == "local"
        at_once = "as many as the GPU is faster with" if local else f"as many as {launcher.name} has room for"
    for dataset, about in grid.images.items():
        print_images(terminal, dataset, about)
    finished = len(grid.jobs) - len(todo)
    rest = f", {finished} already finished" if finished else ""
    print_text(terminal, f"{count(len(todo), 'run')}, {at_once} at a time{rest}")
    for method, size in grid.memory.items():
        print_memory(terminal, method, size)
    errors: dict[experiments.ComparisonRun, str] = {}

    def show(job: experiments.ComparisonRun, news: experiments.News) -> None:
        display.update(job.name, news)
        errors.update({job: news} if isinstance(news, str) else {})

    with Display(len(todo), terminal) as display, contextlib.suppress(experiments.TimeIsUp):
        errors |= experiments.run(grid, jobs, experiments.until(deadline, show), cluster)
    if left := len(grid.open):
        print_text(terminal, f"{count(left, 'run')} left; the same command goes on")
    world.on_main_process(lambda: print_report(grid.out, terminal))
    for job, message in errors.items():
        print_error(f"{job.name}: {message}")
    statuses = world.on_main_process(lambda: [r.status for r in records.load(grid.out).records])
    return int(bool(errors) or "failed" in statuses)


def _study(options: Namespace, command: str, terminal: Console) -> Study:
    """Return the comparison of the options; that of the demo if they set no data, network or training."""
    explicit = explicit_settings(add_arguments, command)
    fields = {f.name for f in dataclasses.fields(Study)} | {"config", "recipe", "scale"}
    if (fields - {*_OF_DEMO}) & {name.partition(".")[0] for name in explicit}:
        configured: Study = configuration(add_arguments, Study, options, command)
        return configured
    name_code(options.as_flat(), shlex.split(command)[2:])
    changed: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in explicit.items() if k in _OF_DEMO
    }
    study = dataclasses.replace(demo(), **changed)
    data = "300 handwritten digits, of which 30 % have a wrong label"
    print_text(terminal, f"no data, network or training is set: {data} (steppe show demo)")
    return study
