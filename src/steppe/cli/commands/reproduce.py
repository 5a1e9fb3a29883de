"""``steppe reproduce``: train the rows of the papers' tables in their order, within a time."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_error, print_text
from steppe.config.run import PrecisionName
from steppe.errors import InputError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from steppe.experiments.reproduction import PaperTable, Queue

_CHANGES = ("precision", "threads", "deterministic", "compile")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--datasets",
        type=str,
        nargs="+",
        required=True,
        help="data sets with their files: cifar10:PATH, cifar100:PATH, or folder:PATH of the same images",
    )
    parser.add_argument(
        "--tables",
        type=str,
        nargs="+",
        default=[],
        help="recipes with a printed table: NAME or NAME:DATA:NETWORK:ROW, any of these; all if not given",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every row")
    parser.add_argument("--within", type=float, default=None, help="stop after so many seconds")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the computation, 1 for the papers'")
    parser.add_argument("--out", type=str, default="reproduce", help="folder of the tables")
    parser.add_argument("--plan", action=ActionYesNo, default=False, help="print order and time, and stop")
    parser.add_argument("--pack", type=str, default=None, help="file into which all runs are packed at the end")
    parser.add_argument("--megabytes", type=float, default=60.0, help="size of that file at most")
    parser.add_argument("--from", type=str, default=None, help="file of packed runs to go on with")
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at a time; 0: cores / threads, or measured on a GPU"
    )
    parser.add_argument("--retry", action=ActionYesNo, default=False, help="run failed runs again")
    parser.add_argument("--precision", type=PrecisionName, default="fp32", help="of all runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per run")
    parser.add_argument("--compile", action=ActionYesNo, default=False, help="compile the networks")
    parser.add_argument(
        "--deterministic", action=ActionYesNo, default=False, help="on a GPU: a stopped run resumes bitwise"
    )


def run(options: Namespace, command: str) -> int:
    """Train the tables in their order until the deadline, and pack the runs; return 1 if a run failed."""
    started = time.monotonic()
    for name in ("within", "megabytes"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise InputError(f"{name} is {getattr(options, name):g}; give a number above 0")
    if options.jobs < 0:
        raise InputError(f"jobs is {options.jobs}; give 0 (as many as fit) or more")
    from steppe import data, hardware, records
    from steppe.cli.progress import Decoding
    from steppe.config import Data
    from steppe.distributed import collectives
    from steppe.experiments import reproduction
    from steppe.experiments.run_lock import file_lock

    if collectives.current_world().size > 1:
        raise InputError("steppe reproduce trains each run in one process; start it without torchrun")
    deadline = math.inf if options.within is None else started + options.within
    out, terminal = Path(options.out), console()
    with Decoding(terminal) as progress:
        queue = reproduction.queue(
            options.datasets,
            out,
            tables=options.tables,
            seeds=tuple(dict.fromkeys(options.seeds)),
            scale=options.scale,
            changes={name: getattr(options, name) for name in _CHANGES},
            progress=progress,
        )
    if options.plan:
        for dataset in options.datasets:  # which a plan does not read
            name, _, path = dataset.partition(":")
            if path and not Path(path).expanduser().exists():
                raise InputError(f"{name} is not in {path}; give {name}:PATH")
        _print_plan(queue, terminal)
        return 0
    records.make_folder(out)
    busy = f"another steppe reproduce is at work in {out}; wait for it, or choose another --out"
    with file_lock(out / "reproduce.lock", busy, "choose a folder you can write with --out"):
        if (packed := getattr(options, "from")) is not None:
            count, others = reproduction.unpack(Path(packed), queue.tables)
            rest = f"; {others} are of other tables" if others else ""
            print_text(terminal, f"{count} runs from {packed}{rest}")
        with Decoding(terminal) as progress:
            for dataset in options.datasets:  # one line for files that are missing, and not one per table
                if not dataset.startswith("folder:"):  # which is read already
                    data.load(dataset, Data(), progress=progress)
        _print_plan(queue, terminal)
        on_gpu = hardware.device().type == "cuda"
        workers = options.jobs or (0 if on_gpu else max(1, hardware.cores() // options.threads))
        try:
            errors = _train(queue.tables, workers, deadline, options.retry, command, terminal)
        finally:
            for table in queue.tables:
                table.write(command)
            if options.pack is not None:
                left_out = reproduction.pack(queue.tables, Path(options.pack), command, options.megabytes)
                size = Path(options.pack).stat().st_size / 1e6
                print_text(terminal, f"packed: {options.pack}, {size:.1f} MB")
                if left_out:
                    print_text(terminal, f"left out, they start anew: {', '.join(left_out)}")
    _print_plan(queue, terminal)
    print_text(terminal, f"accuracies of a table: steppe report {out}/TABLE")
    for name, message in errors.items():
        print_error(f"{name}: {message}")
    return int(bool(errors) or any(table.failed() for table in queue.tables))


def _train(
    tables: list[PaperTable], workers: int, deadline: float, retry: bool, command: str, terminal: Console
) -> dict[str, str]:
    """Train one table after another, each time the first in the order; return the errors by table or run.

    As with a comparison, training begins in any case, and stops at the first report after the deadline.
    """
    from steppe import experiments, records
    from steppe.cli.progress import Decoding, Display
    from steppe.experiments.reproduction import Estimates

    errors: dict[str, str] = {}
    rest = list(tables)
    while rest:
        table = next(t for t in Estimates(tables).order() if t in rest)
        rest.remove(table)
        if not table.open and not (retry and table.failed()):
            continue
        try:
            with Decoding(terminal) as progress:
                records.make_folder(table.out)
                plan = table.check(progress, retry)
        except (InputError, RunError) as error:
            errors[table.name] = str(error)
            continue
        todo = len(plan.open)
        print_text(terminal, f"{table.name}: {todo} of {len(plan.jobs)} runs")
        with Display(todo, terminal) as display:

            def show(job: experiments.ComparisonRun, news: Any, display: Display = display) -> None:
                display.update(job.name, news)
                errors.update({job.name: news} if isinstance(news, str) else {})

            try:
                table.write(command)
                experiments.run(plan, workers, experiments.until(deadline, show))
            except experiments.TimeIsUp:
                pass
            except RunError as error:
                errors[table.name] = str(error)
        if time.monotonic() > deadline:
            print_text(terminal, "stopped in time; the same command goes on")
            break
    return errors


def _print_plan(queue: Queue, terminal: Console) -> None:
    """Print the tables in their order, with what is left, and why others are left out."""
    from steppe.experiments.reproduction import Estimates
    from steppe.report.formatting import count, duration

    estimates = Estimates(queue.tables)
    lines: list[str] = []
    total = 0.0
    for table in estimates.order():
        seconds = estimates.left(table)
        total += seconds
        if table.open:
            answers = count(table.answers, "printed accuracy", "printed accuracies")
            left = f"{count(len(table.open), 'run')}, {answers}"
            lines.append(f"{len(lines) + 1}. {table.name}: {left}, about {duration(seconds)} of training")
    source = "from the finished epochs" if estimates.measured else "no epoch is measured yet"
    left = f"left: about {duration(total)} of training, one run after another ({source})"
    lines.append(left if lines else "no run is left")
    reasons: dict[str, list[str]] = {}
    for label, why in queue.missing.items():
        reasons.setdefault(why, []).append(label)
    lines += [f"left out: {count(len(labels), 'table')}; {why}" for why, labels in reasons.items()]
    print_text(terminal, "\n".join(lines))
