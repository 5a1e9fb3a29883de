"""``steppe compare``: train methods side by side, and report."""

from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_error, print_images, print_memory, print_text
from steppe.cli.options import add_config, configuration
from steppe.config import Study
from steppe.errors import InputError


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at a time; 0: cores / threads, or measured on a GPU"
    )
    parser.add_argument(
        "--launcher", type=str, default="local", help="where runs train: local, ray or slurm, with settings"
    )
    parser.add_argument("--retry", action=ActionYesNo, default=False, help="run failed runs again")
    add_config(parser, Study, "out", "folder of the comparison")


def run(options: Namespace, command: str) -> int:
    """Train the runs that are not finished, print and write the report; return 1 if a run failed, also earlier."""
    from steppe import experiments, hardware, records
    from steppe.cli.commands.report import print_report
    from steppe.cli.progress import Decoding, Display
    from steppe.distributed import collectives
    from steppe.report.formatting import count

    study: Study = configuration(add_arguments, Study, options, command)
    if options.jobs < 0:
        raise InputError(f"jobs is {options.jobs}; give 0 (as many as fit) or more")
    launcher = experiments.Launcher.parse(options.launcher)
    cluster = launcher.cluster(Path(options.out))
    terminal = console()
    with Decoding(terminal) as progress:
        grid = experiments.prepare(study, Path(options.out), command, retry=options.retry, progress=progress)
    todo, world = grid.open, collectives.current_world()
    jobs = options.jobs
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
    with Display(len(todo), terminal) as display:
        errors = experiments.run(grid, jobs, lambda job, news: display.update(job.name, news), cluster)
    world.on_main_process(lambda: print_report(grid.out, terminal))
    for job, message in errors.items():
        print_error(f"{job.name}: {message}")
    failed = world.on_main_process(lambda: any(r.status != "ok" for r in records.load(grid.out).records))
    return int(failed)
