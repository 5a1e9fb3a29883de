"""The command ``steppe diagnose``: measure finished runs within a time budget, and write the report."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from rich.console import Console

from steppe import hardware, records
from steppe.analysis import cross_run, mode_connectivity
from steppe.analysis.load_run import load
from steppe.analysis.suite import FORMAT, CorruptedImages, SuiteSettings, fit_to_budget, run_suite
from steppe.cli import console as terminal
from steppe.config import Run
from steppe.data.dataset import DataSet, Images
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
        help="time for each run; it sets how many images. All measures on the fewest, 32, may take longer",
    )
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


def run(options: Namespace, command: str) -> int:
    """Diagnose runs and comparisons, print and write the results; return the exit code.

    Raises InputError for a folder that is neither, or a comparison without a finished run.
    """
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
        homes += _finished_runs(folder)
    results = _diagnose_all(list(dict.fromkeys(homes)), options, status_console)
    if options.json:
        print(json.dumps({str(home): result for home, result in results.items()}, indent=1))
    else:
        _print_bounds(results, console)
    for folder in comparisons:
        with status_console.status("starting") as status:
            cross_run.write(folder, results, _request(options), options.on, options.again, status.update)
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


def _request(options: Namespace) -> dict[str, Any]:
    """Return the options that a diagnosis depends on, as the file has them."""
    return {
        "format": FORMAT,
        "which": options.which,
        "part": {"val": "validation", "train": "training"}[options.on],
        "seconds": options.seconds,
        "corruptions": None if options.corruptions is None else Path(options.corruptions).resolve().name,
        "bounds": options.bounds,
    }


def _between(homes: list[Path], options: Namespace, console: Console) -> int:
    """Write the loss between networks, on as many images as there is time for, and print the barriers."""
    out = Path(options.between)
    with console.status("starting") as status, hardware.threads(engine.read_run(homes[0]).threads):
        first = load(homes[0], options.which)
        samples = fit_to_budget(first, getattr(first.images, options.on), options.seconds).samples
        figure = mode_connectivity.write(homes, options.which, options.on, samples, out, status.update)
    result = json.loads((out / mode_connectivity.RESULT).read_text())
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    lines = [f"{path['from']} to {path['to']}: barrier {path['barrier']:.3g} nats" for path in result["segments"]]
    if result["triangle"]:
        lines.append(f"between all three: barrier {result['triangle']['barrier']:.3g} nats")
    for line in (*lines, str(figure)):
        terminal.print_text(console, line)
    return 0


def _finished_runs(folder: Path) -> list[Path]:
    """Return the folders of a comparison's finished runs."""
    finished = [r for r in records.load(folder).records if r.status == "ok"]
    if not finished:
        raise InputError(f"no run of {folder} has finished; finish the comparison first")
    return [folder / "runs" / r.digest for r in finished]


def _diagnose_all(homes: list[Path], options: Namespace, console: Console) -> dict[Path, dict[str, Any]]:
    """Diagnose every run that has no diagnosis; runs of equal data and network have equal settings.

    Where there are several runs, one that cannot be measured is named, and the others are measured.

    Raises InputError if no run can be measured.
    """
    results: dict[Path, dict[str, Any]] = {}
    settings = _existing_settings(homes, options)
    data: dict[str, DataSet] = {}
    corrupted = CorruptedImages(None if options.corruptions is None else Path(options.corruptions))
    began, measured = time.monotonic(), 0
    with console.status("starting") as status:
        for number, home in enumerate(homes):
            config = engine.read_run(home)
            group = _group(config)
            existing = _existing_diagnosis(home, options, settings.get(group))
            if existing is not None:
                results[home] = existing
                continue
            key = json.dumps([str(home.parent), config.dataset, config.as_dict()["data"]])
            if key not in data:
                data = {key: engine.load_images(home)}
            title, position = f"{config.method} seed {config.seed}", f"{number + 1} of {len(homes)}"
            if measured:
                left = (time.monotonic() - began) / measured * (len(homes) - number)
                position += f", about {left / 60:.0f} min left"
            update = _labelled(status.update, title, position)
            try:
                with hardware.threads(config.threads):
                    trained = load(home, options.which, data[key])
                    images: Images = getattr(data[key], options.on)
                    if group not in settings:
                        settings[group] = fit_to_budget(trained, images, options.seconds, bounds=options.bounds)
                    result = run_suite(trained, images, settings[group], corrupted, update)
            except InputError as error:
                if number + 1 == len(homes) and not results:
                    raise
                records.write_json(home / DIAGNOSIS, {"error": str(error)} | _request(options))
                terminal.print_text(console, f"[{number + 1}/{len(homes)}] {title}: not measured: {error}")
                continue
            measured += 1
            records.write_json(home / DIAGNOSIS, result | _request(options))
            results[home] = json.loads((home / DIAGNOSIS).read_text())
            terminal.print_text(console, f"[{number + 1}/{len(homes)}] {title}: {result['took']:.1f} s")
    return results


def _labelled(update: Callable[[str], None], title: str, position: str) -> Callable[[str], None]:
    return lambda measure: update(f"{title}: {measure} ({position})")


def _group(config: Run) -> str:
    """Return the data and network of a run; runs that share both are compared and need equal settings."""
    return json.dumps([config.dataset, config.model, config.as_dict()["data"]])


def _existing_settings(homes: list[Path], options: Namespace) -> dict[str, SuiteSettings]:
    """Return the settings of existing diagnoses, so that an interrupted command resumes with the same ones."""
    settings: dict[str, SuiteSettings] = {}
    for home in homes:
        diagnosis = _existing_diagnosis(home, options, None)
        if diagnosis is not None:
            with contextlib.suppress(TypeError):
                settings.setdefault(_group(engine.read_run(home)), SuiteSettings(**diagnosis["settings"]))
    return settings


def _existing_diagnosis(home: Path, options: Namespace, settings: SuiteSettings | None) -> dict[str, Any] | None:
    """Return a run's diagnosis if it was made with these options and settings."""
    path = home / DIAGNOSIS
    if options.again or not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    request = _request(options)
    if "error" in content or {key: content.get(key) for key in request} != request:
        return None
    return content if settings is None or content.get("settings") == vars(settings) else None


def _print_bounds(results: dict[Path, dict[str, Any]], console: Console) -> None:
    for home, result in results.items():
        config = engine.read_run(home)
        for values in result["complexity"].get("bounds", ()):
            bound = Bound(**{k: v for k, v in values.items() if k != "vacuous"})
            terminal.print_text(console, f"{config.method} seed {config.seed}, {bound}")


def _record(home: Path) -> Record:
    config = engine.read_run(home)
    result = records.read_result(home / engine.RESULT)
    metrics = records.read_epochs(home / "metrics.jsonl")
    return Record(home.name, config.method, config.model, config.dataset, config.seed, metrics, [], result)
