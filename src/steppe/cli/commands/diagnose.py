"""The command ``steppe diagnose``: measure finished runs within a time budget, and write the report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from steppe import hardware, records
from steppe.analysis import cross_run, mode_connectivity
from steppe.analysis.load_run import Which, load
from steppe.analysis.suite import FORMAT, CorruptedImages, SuiteSettings, fit_to_budget, run_suite
from steppe.config import Run
from steppe.data.dataset import DataSet, Images
from steppe.diagnostics.pac_bayes import Bound
from steppe.errors import InputError
from steppe.records import Record
from steppe.report.diagnosis import page
from steppe.report.diagnosis.summary import DIAGNOSIS, Diagnosed
from steppe.training import run as engine


@dataclass(frozen=True)
class DiagnoseOptions:
    """The options of the command.

    Attributes:
        seconds: Time per run, which determines the number of images.
        which: The last weights, or those of the best validation epoch.
        part: The images: 'val' or 'train'.
        again: Whether to repeat existing diagnoses.
        corruptions: Folder of the published corrupted images; generated if None.
        bounds: Whether to compute PAC-Bayes bounds.
        between: Folder for the loss between the runs' networks, which is then all that is measured.
    """

    seconds: float
    which: Which
    part: str
    again: bool
    corruptions: str | None = None
    bounds: bool = False
    between: str | None = None

    @property
    def request(self) -> dict[str, Any]:
        """Return the options that a diagnosis depends on, as the file has them."""
        return {
            "format": FORMAT,
            "which": self.which,
            "part": {"val": "validation", "train": "training"}[self.part],
            "seconds": self.seconds,
            "corruptions": None if self.corruptions is None else Path(self.corruptions).resolve().name,
            "bounds": self.bounds,
        }


def run(folders: Sequence[str], options: DiagnoseOptions, as_json: bool, console: Console) -> int:
    """Diagnose runs and comparisons, print and write the results; return the exit code.

    Raises InputError for a folder that is neither, or a comparison without a finished run.
    """
    comparisons = [Path(f) for f in folders if (Path(f) / "compare.json").exists()]
    homes = [Path(f) for f in folders if Path(f) not in comparisons]
    status_console = Console(stderr=True) if as_json else console
    hardware.keep_freed_memory()
    if options.between is not None:
        if comparisons:
            raise InputError(f"{comparisons[0]} is a comparison; with --between give 2 or 3 of its runs")
        return _between(homes, options, Path(options.between), as_json, status_console)
    for folder in comparisons:
        homes += _finished_runs(folder)
    results = _diagnose_all(list(dict.fromkeys(homes)), options, status_console)
    if as_json:
        print(json.dumps({str(home): result for home, result in results.items()}, indent=1))
    else:
        _print_bounds(results, console)
    for folder in comparisons:
        with status_console.status("starting") as status:
            cross_run.write(folder, results, options.request, options.part, options.again, status.update)
        html = page.write(folder)
        if not as_json:
            for table in page.terminal(folder):
                console.print(table)
            console.print(f"\ndiagnosis: {html}", highlight=False, markup=False, soft_wrap=True)
    if not comparisons and not as_json:
        console.print(page.one([Diagnosed(_record(home), result) for home, result in results.items()]))
        for home in results:
            console.print(f"diagnosis: {home / DIAGNOSIS}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _between(homes: list[Path], options: DiagnoseOptions, out: Path, as_json: bool, console: Console) -> int:
    """Write the loss between networks, on as many images as there is time for, and print the barriers."""
    with console.status("starting") as status, hardware.threads(engine.read_run(homes[0]).threads):
        first = load(homes[0], options.which)
        samples = fit_to_budget(first, getattr(first.images, options.part), options.seconds).samples
        figure = mode_connectivity.write(homes, options.which, options.part, samples, out, status.update)
    result = json.loads((out / mode_connectivity.RESULT).read_text())
    if as_json:
        print(json.dumps(result, indent=1))
        return 0
    lines = [f"{path['from']} to {path['to']}: barrier {path['barrier']:.3g} nats" for path in result["segments"]]
    if result["triangle"]:
        lines.append(f"between all three: barrier {result['triangle']['barrier']:.3g} nats")
    for line in (*lines, str(figure)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _finished_runs(folder: Path) -> list[Path]:
    """Return the folders of a comparison's finished runs."""
    finished = [r for r in records.load(folder).records if r.status == "ok"]
    if not finished:
        raise InputError(f"no run of {folder} has finished; finish the comparison first")
    return [folder / "runs" / r.digest for r in finished]


def _diagnose_all(homes: list[Path], options: DiagnoseOptions, console: Console) -> dict[Path, dict[str, Any]]:
    """Diagnose every run that has no diagnosis; runs of equal data and network have equal settings."""
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
            key = json.dumps([config.dataset, config.as_dict()["data"]])
            if key not in data:
                data = {key: engine.load_data(config)}
            title, position = f"{config.method} seed {config.seed}", f"{number + 1} of {len(homes)}"
            if measured:
                left = (time.monotonic() - began) / measured * (len(homes) - number)
                position += f", about {left / 60:.0f} min left"
            with hardware.threads(config.threads):
                trained = load(home, options.which, data[key])
                images: Images = getattr(data[key], options.part)
                if group not in settings:
                    settings[group] = fit_to_budget(trained, images, options.seconds, bounds=options.bounds)
                result = run_suite(
                    trained, images, settings[group], corrupted, _labelled(status.update, title, position)
                )
            measured += 1
            records.write_json(home / DIAGNOSIS, result | options.request)
            results[home] = json.loads((home / DIAGNOSIS).read_text())
            line = f"[{number + 1}/{len(homes)}] {title}: {result['took']:.1f} s"
            console.print(line, highlight=False, markup=False)
    return results


def _labelled(update: Callable[[str], None], title: str, position: str) -> Callable[[str], None]:
    return lambda measure: update(f"{title}: {measure} ({position})")


def _group(config: Run) -> str:
    """Return the data and network of a run; runs that share both are compared and need equal settings."""
    return json.dumps([config.dataset, config.model, config.as_dict()["data"]])


def _existing_settings(homes: list[Path], options: DiagnoseOptions) -> dict[str, SuiteSettings]:
    """Return the settings of existing diagnoses, so that an interrupted command resumes with the same ones."""
    settings: dict[str, SuiteSettings] = {}
    for home in homes:
        diagnosis = _existing_diagnosis(home, options, None)
        if diagnosis is not None:
            with contextlib.suppress(TypeError):
                settings.setdefault(_group(engine.read_run(home)), SuiteSettings(**diagnosis["settings"]))
    return settings


def _existing_diagnosis(
    home: Path, options: DiagnoseOptions, settings: SuiteSettings | None
) -> dict[str, Any] | None:
    """Return a run's diagnosis if it was made with these options and settings."""
    path = home / DIAGNOSIS
    if options.again or not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    if {key: content.get(key) for key in options.request} != options.request:
        return None
    return content if settings is None or content.get("settings") == vars(settings) else None


def _print_bounds(results: dict[Path, dict[str, Any]], console: Console) -> None:
    for home, result in results.items():
        config = engine.read_run(home)
        for values in result["complexity"].get("bounds", ()):
            bound = Bound(**{k: v for k, v in values.items() if k != "vacuous"})
            console.print(f"{config.method} seed {config.seed}, {bound}", highlight=False, markup=False)


def _record(home: Path) -> Record:
    config = engine.read_run(home)
    result = records.read_result(home / engine.RESULT)
    metrics = records.read_epochs(home / "metrics.jsonl")
    return Record(home.name, config.method, config.model, config.dataset, config.seed, metrics, [], result)
