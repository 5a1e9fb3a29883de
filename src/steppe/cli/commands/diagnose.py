"""The command ``steppe diagnose``: measure finished runs within a time budget, and write the report."""

import json
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from rich.console import Console

from steppe import hardware, records
from steppe.analysis import cross_run, mode_connectivity
from steppe.analysis.diagnose_runs import Request, diagnose_runs, finished_runs
from steppe.analysis.load_run import load
from steppe.analysis.suite import fit_to_budget
from steppe.cli import console as terminal
from steppe.cli.options import name_code
from steppe.diagnostics.pac_bayes import Bound
from steppe.errors import InputError
from steppe.records import Record
from steppe.report.diagnosis import page
from steppe.report.diagnosis.summary import DIAGNOSIS, DiagnosedRun
from steppe.training import run as engine


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folders", type=str, nargs="+", help="folders of comparisons, or of runs")
    parser.add_argument(
        "--seconds",
        type=float,
        default=8.0,
        help="time for each run; it sets how many samples. All measures on the fewest, 32, may take longer",
    )
    parser.add_argument("--which", type=Literal["last", "best"], default="last", help="last or best epoch")
    parser.add_argument("--on", type=Literal["val", "train"], default="val", help="data: validation or training")
    parser.add_argument(
        "--corruptions", type=str, default=None, help="folder of CIFAR-10-C, -100-C or ImageNet-C; else made here"
    )
    parser.add_argument("--bounds", action=ActionYesNo, default=False, help="make PAC-Bayes bounds too")
    parser.add_argument(
        "--between", type=str, default=None, help="folder for the loss between 2 or 3 runs, or one run's networks"
    )
    parser.add_argument(
        "--code", type=str, nargs="*", default=[], help="your code that the runs' records name: module:name"
    )
    parser.add_argument("--again", action=ActionYesNo, default=False, help="measure anew what has been measured")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print what was found as JSON")


def run(options: Namespace, command: str) -> int:
    """Diagnose runs and comparisons, print and write the results; return the exit code.

    Raises InputError for a folder that is neither, or a comparison without a finished run.
    """
    name_code(options, options.code)
    console = terminal.console()
    comparisons = [Path(f) for f in options.folders if (Path(f) / "compare.json").exists()]
    homes = [Path(f) for f in options.folders if Path(f) not in comparisons]
    status_console = terminal.console(stderr=True) if options.json else console
    hardware.keep_freed_memory()
    if options.between is not None:
        if comparisons:
            raise InputError(f"{comparisons[0]} is a comparison; with --between give 2 or 3 of its runs")
        return _between(homes, options, status_console)
    for folder in comparisons:
        homes += finished_runs(folder)
    request = Request(**{name: getattr(options, name) for name in Request.__dataclass_fields__})
    with status_console.status("starting") as status:
        results = diagnose_runs(
            list(dict.fromkeys(homes)),
            request,
            status.update,
            lambda line: terminal.print_text(status_console, line),
        )
    if options.json:
        print(json.dumps({str(home): result for home, result in results.items()}, indent=1))
    else:
        _print_bounds(results, console)
    for folder in comparisons:
        with status_console.status("starting") as status:
            cross_run.write(folder, results, request.as_dict(), options.on, options.again, status.update)
        html = page.write(folder)
        if not options.json:
            for table in page.terminal(folder):
                console.print(table)
            terminal.print_text(console, f"\ndiagnosis: {html}")
    if not comparisons and not options.json:
        console.print(
            page.terminal_runs([DiagnosedRun(_record(home), result) for home, result in results.items()])
        )
        for home in results:
            terminal.print_text(console, f"diagnosis: {home / DIAGNOSIS}")
    return 0


def _between(homes: list[Path], options: Namespace, console: Console) -> int:
    """Write the loss between networks, on as many samples as there is time for, and print the barriers."""
    out = Path(options.between)
    with console.status("starting") as status, hardware.threads(engine.read_run(homes[0]).threads):
        first = load(homes[0], options.which)
        samples = fit_to_budget(first, getattr(first.images, options.on), options.seconds).samples
        figure = mode_connectivity.write(homes, options.which, options.on, samples, out, status.update)
    result = json.loads((out / mode_connectivity.RESULT).read_text())
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    unit = result["unit"] and f" {result['unit']}"
    lines = [f"{path['from']} to {path['to']}: barrier {path['barrier']:.3g}{unit}" for path in result["segments"]]
    if result["triangle"]:
        lines.append(f"between all three: barrier {result['triangle']['barrier']:.3g}{unit}")
    for line in (*lines, str(figure)):
        terminal.print_text(console, line)
    return 0


def _print_bounds(results: dict[Path, dict[str, Any]], console: Console) -> None:
    for home, result in results.items():
        config = engine.read_run(home)
        for values in (result["complexity"] or {}).get("bounds", ()):
            bound = Bound(**{k: v for k, v in values.items() if k != "vacuous"})
            terminal.print_text(console, f"{config.title}, {bound}")


def _record(home: Path) -> Record:
    config = engine.read_run(home)
    result = records.read_result(home / engine.RESULT)
    metrics = records.read_epochs(home / "metrics.jsonl")
    return Record(home.name, config.label, config.model, config.dataset, config.seed, metrics, [], result)
