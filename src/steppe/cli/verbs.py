"""The verbs of the command line: each reads its configuration, calls one function and says what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli import console as voice
from steppe.cli import tables as listing
from steppe.cli.asking import add_recipe, configured
from steppe.cli.commands import bench
from steppe.cli.options import ConfigFile, add_fields
from steppe.config import Run, Study
from steppe.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out", help="folder of the comparison")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; 0: as many as the cores carry")
    parser.add_argument(
        "--launcher", type=str, default="local", help="where runs train: local, ray or slurm, with settings"
    )
    parser.add_argument("--retry", action=ActionYesNo, default=False, help="run failed runs again")
    add_recipe(parser)
    add_fields(parser, Study)


def _compare(given: Namespace, command: str) -> int:
    from steppe import experiments, hardware
    from steppe.cli.progress import Decoding, Display
    from steppe.distributed import collectives

    study = configured(_compare_arguments, Study, given, command)
    if given.jobs < 0:
        raise InputError(f"jobs is {given.jobs}; give 0 (as many as fit) or more")
    launcher = experiments.Launcher.parse(given.launcher)
    cluster = launcher.cluster(Path(given.out))
    console = voice.console()
    with Decoding(console) as progress:
        grid = experiments.prepare(study, Path(given.out), command, retry=given.retry, progress=progress)
    todo = grid.open
    on_gpu = hardware.device().type == "cuda"
    as_many = (1 if on_gpu else max(1, hardware.cores() // study.threads)) if launcher.name == "local" else 0
    jobs = given.jobs or as_many
    kept = len(grid.jobs) - len(todo)
    kept_text = f", {kept} already finished" if kept else ""
    here = collectives.current_world()
    at_once = min(jobs, max(len(todo), 1)) if here.size == 1 else f"1 (on {here.size} processes)"
    at_once = at_once if jobs else f"as many as {launcher.name} carries"
    console.print(f"{len(todo)} runs, {at_once} at a time{kept_text}", highlight=False)
    for dataset, names in grid.left_out.items():
        _tell_left_out(dataset, names, console)
    for method, count in grid.memory.items():
        _tell_memory(method, count, console)
    with Display(len(todo), console) as display:
        errors = experiments.run(grid, jobs, display.listen, cluster)
    here.on_main_process(lambda: _print_report(grid.out, console))
    for job, message in errors.items():
        voice.complain(f"{job.name}: {message}")
    return 1 if errors else 0


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out", help="folder under which the run's own folder is made")
    parser.add_argument("--plan", action=ActionYesNo, default=False, help="say what would happen when, and stop")
    add_recipe(parser)
    add_fields(parser, Run)


def _train(given: Namespace, command: str) -> int:
    from steppe import hardware
    from steppe.cli.progress import Decoding, Display
    from steppe.distributed import collectives
    from steppe.experiments.run_lock import locked_run
    from steppe.training import run as engine

    run = configured(_train_arguments, Run, given, command)
    hardware.keep_freed_memory()
    console = voice.console()
    with Decoding(console) as progress:
        images = collectives.current_world().main_process_first(lambda: engine.load_data(run, progress))
    engine.check(run, images)
    _tell_left_out(run.dataset, images.skipped, console)
    if given.plan:
        lines = engine.plan(run, images)
        width = max(len(label) for label, _ in lines)
        text = "\n".join(f"{label:<{width}}  {value}" for label, value in lines)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        return 0
    folder = Path(given.out) / "runs" / engine.digest(run)

    @dataclasses.dataclass(frozen=True)
    class One:
        name: str = f"{run.method} seed {run.seed}"

    _tell_memory(run.method, engine.memory_bytes(run, images), console)
    with (
        collectives.current_world().held_by_main_process(lambda: locked_run(folder)),
        Display(1, console) as display,
    ):
        result = engine.train_run(run, folder, images, lambda news: display.listen(One(), news))
        display.listen(One(), result)
    console.print(f"records: {folder}", highlight=False, markup=False, soft_wrap=True)
    return 0 if result["status"] == "ok" else 1


def _tell_left_out(dataset: str, names: Sequence[str], console: Console) -> None:
    """Say which images of a data set could not be read, if any."""
    from steppe.report.formatting import left_out

    if names:
        text = f"{dataset}: {left_out(names)}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _tell_memory(method: str, count: int, console: Console) -> None:
    """Say what a method will keep per training image, if anything."""
    from steppe.training.run import format_bytes

    if count:
        console.print(f"{method} keeps {format_bytes(count)} of past outputs", highlight=False, markup=False)


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder of a comparison")
    parser.add_argument(
        "--live", action=ActionYesNo, default=False, help="serve a page that follows the runs, to this machine"
    )
    parser.add_argument("--port", type=int, default=0, help="live: port of the page; 0: any that is free")


def _report(given: Namespace, command: str) -> int:
    if given.live:
        from steppe.report.comparison import live

        def tell(at: str) -> None:
            print(f"live report: {at} (Ctrl-C ends it)", flush=True)

        live.serve(Path(given.folder), given.port, tell)
        return 0
    if given.port:
        raise InputError(f"port is {given.port} and there is nothing to serve; add --live")
    _print_report(Path(given.folder), voice.console())
    return 0


def _print_report(folder: Path, console: Console) -> None:
    """Write a comparison's report and show its table and its reading."""
    from steppe import records
    from steppe.report.comparison import conclusions, deployables, page, tables
    from steppe.report.comparison import summary as rows

    written = page.write(folder)
    comparison = records.load(folder)
    table = rows.rows(comparison)
    console.print(tables.terminal(table))
    for shown in deployables.terminal(deployables.parts(comparison)):
        console.print(shown)
    for text in (conclusions.sentence(table), *conclusions.remarks(table)):
        console.print(f"\n{text}", highlight=False, markup=False)
    console.print(f"\nreport: {written}", highlight=False, markup=False, soft_wrap=True)


def _list_arguments(parser: ArgumentParser) -> None:
    kinds = Literal["methods", "models", "datasets", "recipes"]
    parser.add_argument(
        "kind", type=kinds, nargs="?", default="methods", help="methods, models, datasets or recipes"
    )
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the list as JSON")


def _list(given: Namespace, command: str) -> int:
    from steppe import data, methods, models
    from steppe.config import recipes

    if given.kind == "methods":
        rows = [methods.row(name) for name in methods.names()]
        print(json.dumps([vars(r) for r in rows], indent=1) if given.json else listing.methods(rows))
    elif given.kind == "recipes":
        titles = {name: recipes.load(name).title for name in recipes.names()}
        print(json.dumps(titles, indent=1) if given.json else recipes.listing(titles))
    else:
        names = (models if given.kind == "models" else data).names()
        print(json.dumps(names) if given.json else "\n".join(names))
    return 0


def _show_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", type=str, help="name of a method or a recipe; `steppe list` has them")


def _show(given: Namespace, command: str) -> int:
    from steppe import methods
    from steppe.config import recipes

    if given.method in recipes.names():
        print(recipes.card(recipes.load(given.method)))
        return 0
    method = methods.make(given.method)
    print(methods.card(given.method))
    print(f"\nControls {', '.join(method.controls) or 'none beside plain'}\nSettings {method}")
    return 0


def _conformance_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", type=str, nargs="*", default=[], help="methods, or module:Class; all if none")
    parser.add_argument("--checks", type=str, nargs="+", default=[], help="checks to run; all if not given")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the results as JSON")
    parser.add_argument("--markdown", type=str, default=None, help="file that the table is written into")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, or cuda where it matters")


def _conformance(given: Namespace, command: str) -> int:
    from steppe.cli.commands.conformance import conformance

    wanted = (given.names, given.checks, given.device, given.json, given.markdown)
    return conformance(*wanted, command, voice.console())


def _diagnose_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folders", type=str, nargs="+", help="folders of comparisons, or of runs")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each run; it sets how many images")
    parser.add_argument("--which", type=Literal["last", "best"], default="last", help="last or best epoch")
    parser.add_argument("--on", type=Literal["val", "train"], default="val", help="images: validation or training")
    parser.add_argument(
        "--corruptions", type=str, default=None, help="folder of CIFAR-10-C, -100-C or ImageNet-C; else made here"
    )
    parser.add_argument("--bounds", action=ActionYesNo, default=False, help="make PAC-Bayes bounds too")
    parser.add_argument(
        "--between", type=str, default=None, help="folder for the loss between 2 or 3 runs, or one run's networks"
    )
    parser.add_argument("--again", action=ActionYesNo, default=False, help="measure anew what has been measured")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print what was found as JSON")


def _diagnose(given: Namespace, command: str) -> int:
    from steppe.cli.commands import diagnose

    more = (given.corruptions, given.bounds, given.between)
    asked = diagnose.DiagnoseOptions(given.seconds, given.which, given.on, given.again, *more)
    return diagnose.run(given.folders, asked, given.json, voice.console())


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("out", type=str, help="folder that the network is written to")
    parser.add_argument("--weights", type=Literal["best", "last"], default="best", help="of which epoch")
    parser.add_argument("--onnx", action=ActionYesNo, default=False, help="write ONNX too")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the description as JSON")


def _export(given: Namespace, command: str) -> int:
    from steppe.training.export import export

    out = Path(given.out)
    content = export(Path(given.run), out, which=given.weights, onnx=given.onnx)
    if given.json:
        print(json.dumps(content, indent=1))
        return 0
    size = f"{content['model']}, {content['parameters']:,} parameters, epoch {content['epoch']}"
    names = ", ".join(content["files"].values())
    text = f"{size}; checked against what {content['method']} predicts\n{out}: {names}"
    voice.console().print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


TEAMWORK = ("compare", "train")  # verbs that the processes of a torchrun job do together


def _tune_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out/tune", help="folder of the search and its runs")
    parser.add_argument(
        "--settings", type=str, nargs="+", default=[], help="what is searched: NAME or NAME=LOW..HIGH"
    )
    parser.add_argument("--trials", type=int, default=20, help="values tried")
    parser.add_argument("--within", type=float, default=None, help="seconds for everything; no limit if not given")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each trial, with as many seeds")
    parser.add_argument("--confirm", type=int, default=3, help="fresh seeds of the best setting and of plain")
    parser.add_argument(
        "--pruner", type=Literal["median", "halving", "none"], default="median", help="what ends trials early"
    )
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the answer as JSON")
    add_recipe(parser)
    add_fields(parser, Run)


def _tune(given: Namespace, command: str) -> int:
    from steppe.cli.commands import tune
    from steppe.experiments.tuning import TuningBudget

    asked = configured(_tune_arguments, Run, given, command)
    budget = TuningBudget(given.trials, given.within, given.seeds, given.confirm, given.pruner)
    return tune.run(asked, given.settings, budget, Path(given.out), given.json, command, voice.console())


Verb = tuple[Callable[[ArgumentParser], None], Callable[[Namespace, str], int], str]

COMMANDS: dict[str, Verb] = {
    "compare": (_compare_arguments, _compare, "Train methods side by side, fairly, and report."),
    "train": (_train_arguments, _train, "Train one run."),
    "report": (_report_arguments, _report, "Write the report of a comparison anew."),
    "list": (_list_arguments, _list, "List methods, models, data sets or recipes."),
    "show": (_show_arguments, _show, "Show the card of a method or a recipe."),
    "bench": (bench.add_arguments, bench.run, "Measure what a step of each method costs."),
    "tune": (_tune_arguments, _tune, "Choose a method's settings on the validation split, within a budget."),
    "diagnose": (_diagnose_arguments, _diagnose, "Measure what was trained: sharpness, landscapes, robustness."),
    "export": (_export_arguments, _export, "Write the one network that a run deploys as a plain module."),
    "conformance": (_conformance_arguments, _conformance, "Check what must hold for every method."),
}
