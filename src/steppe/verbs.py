"""The verbs of the command line: each reads its configuration, calls one function and says what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, Namespace

from steppe import voice
from steppe.config import Run, Study
from steppe.errors import InputError
from steppe.flags import add_fields, make

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = {
    "compare": """examples:
  steppe compare                                           the methods of the SADT paper on digits, 3 seeds
  steppe compare --methods plain sam sam:rho=0.1 sadt-v1   choose methods, with settings
  steppe compare --datasets folder:photos --data.size 64 --models torchvision/resnet18
  steppe compare --match gradients                         equal numbers of gradient evaluations
  steppe compare --config study.yaml --seeds 0 1 2 3 4     a file, with one change

A comparison that was stopped goes on when the same command is given again; finished runs are kept.""",
    "train": """examples:
  steppe train --method sadt-v1 --dataset cifar10:PATH --epochs 30 --batch 256
  steppe train --method sam:rho=0.1+gc --seed 3
  steppe train --method "sam:rho=linear(0,0.1,0.5),start=0.1" --plan

A run that was stopped goes on when the same command is given again.""",
    "report": """example:
  steppe report out                                        write the tables and the page anew""",
    "list": """examples:
  steppe list                                              methods: cost, memory, source, a sentence
  steppe list models""",
    "show": """example:
  steppe show sadt-v1                                      equation, paper, cost, differences, values to try""",
    "conformance": """examples:
  steppe conformance                                       all methods, every check
  steppe conformance sam:rho=0.1 my_module:MyMethod        chosen ones, your own class among them
  steppe conformance pytorch_optimizer:SAM                 a third party's optimizer
  steppe conformance sam --checks fp16 overflow --device cuda""",
}


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out", help="folder of the comparison")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; 0: as many as the cores carry")
    parser.add_argument("--retry", action=ActionYesNo, default=False, help="run failed runs again")
    add_fields(parser, Study)


def _compare(given: Namespace, command: str) -> int:
    from steppe import compare, machine, team
    from steppe.compare.live import Display

    study = make(Study, given)
    if given.jobs < 0:
        raise InputError(f"jobs is {given.jobs}; give 0 (as many as fit) or more")
    console = voice.console()
    grid = compare.prepare(study, Path(given.out), command, retry=given.retry)
    todo = grid.open
    on_gpu = machine.device().type == "cuda"
    jobs = given.jobs or (1 if on_gpu else max(1, machine.cores() // study.threads))
    kept = len(grid.jobs) - len(todo)
    kept_text = f", {kept} already finished" if kept else ""
    here = team.here()
    at_once = min(jobs, max(len(todo), 1)) if here.size == 1 else f"1 (on {here.size} processes)"
    console.print(f"{len(todo)} runs, {at_once} at a time{kept_text}", highlight=False)
    for method, count in grid.memory.items():
        _tell_memory(method, count, console)
    with Display(len(todo), console) as display:
        errors = compare.run(grid, jobs, display.listen)
    here.first(lambda: _print_report(grid.out, console))
    for job, message in errors.items():
        voice.complain(f"{job.name}: {message}")
    return 1 if errors else 0


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out", help="folder under which the run's own folder is made")
    parser.add_argument("--plan", action=ActionYesNo, default=False, help="say what would happen when, and stop")
    add_fields(parser, Run)


def _train(given: Namespace, command: str) -> int:
    from steppe import engine, machine, team
    from steppe.compare.live import Display

    run = make(Run, given)
    machine.keep_freed_memory()
    images = team.here().in_turn(lambda: engine.load_data(run))
    engine.check(run, images)
    if given.plan:
        lines = engine.plan(run, images)
        width = max(len(label) for label, _ in lines)
        text = "\n".join(f"{label:<{width}}  {value}" for label, value in lines)
        voice.console().print(text, highlight=False, markup=False, soft_wrap=True)
        return 0
    folder = Path(given.out) / "runs" / engine.digest(run)

    @dataclasses.dataclass(frozen=True)
    class One:
        name: str = f"{run.method} seed {run.seed}"

    console = voice.console()
    _tell_memory(run.method, engine.footprint(run, images), console)
    with Display(1, console) as display:
        result = engine.fit(run, folder, images, lambda news: display.listen(One(), news))
        display.listen(One(), result)
    console.print(f"records: {folder}", highlight=False, markup=False, soft_wrap=True)
    return 0 if result["status"] == "ok" else 1


def _tell_memory(method: str, count: int, console: Console) -> None:
    """Say what a method will keep per training image, if anything."""
    from steppe.engine import as_size

    if count:
        console.print(f"{method} keeps {as_size(count)} of past outputs", highlight=False, markup=False)


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder of a comparison")


def _report(given: Namespace, command: str) -> int:
    _print_report(Path(given.folder), voice.console())
    return 0


def _print_report(folder: Path, console: Console) -> None:
    """Write a comparison's report and show its table and its reading."""
    from steppe import records
    from steppe.report import page, reading, rows, tables

    written = page.write(folder)
    table = rows.rows(records.load(folder))
    console.print(tables.terminal(table))
    for text in (reading.sentence(table), *reading.remarks(table)):
        console.print(f"\n{text}", highlight=False, markup=False)
    console.print(f"\nreport: {written}", highlight=False, markup=False, soft_wrap=True)


def _list_arguments(parser: ArgumentParser) -> None:
    kinds = Literal["methods", "models", "datasets"]
    parser.add_argument("kind", type=kinds, nargs="?", default="methods", help="methods, models or datasets")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the list as JSON")


def _list(given: Namespace, command: str) -> int:
    from steppe import data, listing, methods, models

    if given.kind == "methods":
        rows = [methods.row(name) for name in methods.names()]
        print(json.dumps([vars(r) for r in rows], indent=1) if given.json else listing.methods(rows))
    else:
        names = (models if given.kind == "models" else data).names()
        print(json.dumps(names) if given.json else "\n".join(names))
    return 0


def _show_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", type=str, help="a method's name; `steppe list` has them")


def _show(given: Namespace, command: str) -> int:
    from steppe import methods

    print(methods.card(given.method))
    print(f"\nSettings {methods.make(given.method)}")
    return 0


def _conformance_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", type=str, nargs="*", default=[], help="methods, or module:Class; all if none")
    parser.add_argument("--checks", type=str, nargs="+", default=[], help="checks to run; all if not given")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the results as JSON")
    parser.add_argument("--markdown", type=str, default=None, help="file that the table is written into")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, or cuda where it matters")


def _conformance(given: Namespace, command: str) -> int:
    from steppe.testing.verb import conformance

    wanted = (given.names, given.checks, given.device, given.json, given.markdown)
    return conformance(*wanted, command, voice.console())


TEAMWORK = ("compare", "train")  # verbs that the processes of a torchrun job do together

Verb = tuple[Callable[[ArgumentParser], None], Callable[[Namespace, str], int], str]

COMMANDS: dict[str, Verb] = {
    "compare": (_compare_arguments, _compare, "Train methods side by side, fairly, and report."),
    "train": (_train_arguments, _train, "Train one run."),
    "report": (_report_arguments, _report, "Write the report of a comparison anew."),
    "list": (_list_arguments, _list, "List methods, models or data sets."),
    "show": (_show_arguments, _show, "Show a method's card."),
    "conformance": (_conformance_arguments, _conformance, "Check what must hold for every method."),
}
