"""The command ``steppe diagnose``: measure finished runs within a budget, and draw what they say together."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from rich.console import Console

from steppe import hardware, records
from steppe.analysis import cross_run, mode_connectivity
from steppe.analysis.load_run import Which, load, read_run
from steppe.analysis.suite import FORMAT, Corrupted, SuiteSettings, affordable, diagnose
from steppe.cli import console as terminal
from steppe.data.dataset import DataSet, Images
from steppe.diagnostics.pac_bayes import Bound
from steppe.errors import InputError
from steppe.records import Record
from steppe.report.diagnosis import page as diagnosis
from steppe.report.diagnosis.summary import DIAGNOSIS, Diagnosed
from steppe.training import run as engine

PARTS = ("val", "train")


@dataclass(frozen=True)
class DiagnoseOptions:
    """What is asked of each run.

    Attributes:
        seconds: Time for it, which sets how many images are looked at.
        which: Its last weights, or those of its best validation epoch.
        part: 'val' or 'train': the images.
        again: Whether what is known is measured anew.
        corruptions: Folder of the published corrupted images; generated if None.
        bounds: Whether PAC-Bayes bounds are made too.
        between: Folder that the loss between the runs' networks is written to, in place of all else.
    """

    seconds: float
    which: Which
    part: str
    again: bool
    corruptions: str | None = None
    bounds: bool = False
    between: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """Return what a diagnosis says of how it was asked for."""
        official = None if self.corruptions is None else Path(self.corruptions).resolve().name
        part = {"val": "validation", "train": "training"}[self.part]
        asked = {"which": self.which, "part": part, "seconds": self.seconds, "corruptions": official}
        return {"format": FORMAT, **asked, "bounds": self.bounds}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
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


def run(options: Namespace, command: str) -> int:
    """Diagnose runs and comparisons."""
    more = (options.corruptions, options.bounds, options.between)
    asked = DiagnoseOptions(options.seconds, options.which, options.on, options.again, *more)
    return diagnose_folders(options.folders, asked, options.json, terminal.console())


def diagnose_folders(folders: Sequence[str], asked: DiagnoseOptions, as_json: bool, console: Console) -> int:
    """Diagnose runs and comparisons, print and write what was found; return the exit code.

    Raises InputError for a folder that is neither, or a comparison without a finished run.
    """
    if asked.part not in PARTS:
        raise InputError(f"on is {asked.part!r}; choose one of val, train")
    if not asked.seconds > 0:
        raise InputError(f"seconds is {asked.seconds}; give a number above 0")
    comparisons = [Path(f) for f in folders if (Path(f) / "compare.json").exists()]
    homes = [Path(f) for f in folders if Path(f) not in comparisons]
    watching = Console(stderr=True) if as_json else console
    hardware.keep_freed_memory()
    if asked.between is not None:
        if comparisons:
            raise InputError(f"{comparisons[0]} is a comparison; with --between give 2 or 3 of its runs")
        return _between(homes, asked, Path(asked.between), as_json, watching)
    for folder in comparisons:
        homes += _finished(folder)
    found = _all(list(dict.fromkeys(homes)), asked, watching)
    if as_json:
        print(json.dumps({str(home): content for home, content in found.items()}, indent=1))
    for home, content in () if as_json else found.items():
        for held in content["complexity"].get("bounds", ()):
            config, bound = read_run(home), Bound(**{k: v for k, v in held.items() if k != "vacuous"})
            console.print(f"{config.method} seed {config.seed}, {bound}", highlight=False, markup=False)
    for folder in comparisons:
        with watching.status("starting") as status:
            cross_run.write(folder, found, asked.about, asked.part, asked.again, status.update)
        page = diagnosis.write(folder)
        if not as_json:
            for table in diagnosis.terminal(folder):
                console.print(table)
            console.print(f"\ndiagnosis: {page}", highlight=False, markup=False, soft_wrap=True)
    if not comparisons and not as_json:
        console.print(diagnosis.one([Diagnosed(_record(home), content) for home, content in found.items()]))
        for home in found:
            console.print(f"diagnosis: {home / DIAGNOSIS}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _between(homes: list[Path], asked: DiagnoseOptions, out: Path, as_json: bool, console: Console) -> int:
    """Write the loss between networks, on as many images as there is time for, and say the barriers' heights."""
    with console.status("starting") as status, hardware.threads(read_run(homes[0]).threads):
        first = load(homes[0], asked.which)
        samples = affordable(first, getattr(first.images, asked.part), asked.seconds).samples
        picture = mode_connectivity.write(homes, asked.which, asked.part, samples, out, status.update)
    found = json.loads((out / mode_connectivity.MIDDLE).read_text())
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    for way in found["segments"]:
        line = f"{way['from']} to {way['to']}: barrier {way['barrier']:.3g} nats"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found["triangle"]:
        console.print(f"between all three: barrier {found['triangle']['barrier']:.3g} nats", highlight=False)
    console.print(f"{picture}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _finished(folder: Path) -> list[Path]:
    """Return the folders of a comparison's finished runs."""
    done = [r for r in records.load(folder).records if r.status == "ok"]
    if not done:
        raise InputError(f"no run of {folder} has finished; finish the comparison first")
    return [folder / "runs" / r.digest for r in done]


def _all(homes: list[Path], asked: DiagnoseOptions, console: Console) -> dict[Path, dict[str, Any]]:
    """Diagnose every run that has not been, runs of equal data and network with equal settings."""
    found: dict[Path, dict[str, Any]] = {}
    chosen: dict[str, SuiteSettings] = _held_settings(homes, asked)
    sets: dict[str, DataSet] = {}
    corrupted = Corrupted(None if asked.corruptions is None else Path(asked.corruptions))
    began, worked = time.monotonic(), 0
    with console.status("starting") as status:
        for number, home in enumerate(homes):
            config = read_run(home)
            alike = _alike(home)
            data = json.dumps([config.dataset, config.as_dict()["data"]])
            known = _known(home, asked, chosen.get(alike))
            if known is not None:
                found[home] = known
                continue
            if data not in sets:
                sets = {data: engine.load_data(config)}
            with hardware.threads(config.threads):
                trained = load(home, asked.which, sets[data])
                images: Images = getattr(sets[data], asked.part)
                if alike not in chosen:
                    chosen[alike] = affordable(trained, images, asked.seconds, bounds=asked.bounds)
                left = (time.monotonic() - began) / worked * (len(homes) - number) if worked else None
                say = _teller(status.update, f"{config.method} seed {config.seed}", number, len(homes), left)
                made = diagnose(trained, images, chosen[alike], corrupted, say)
            worked += 1
            made |= asked.about
            records.write_json(home / DIAGNOSIS, made)
            found[home] = json.loads((home / DIAGNOSIS).read_text())
            line = f"[{number + 1}/{len(homes)}] {config.method} seed {config.seed}: {made['took']:.1f} s"
            console.print(line, highlight=False, markup=False)
    return found


def _alike(home: Path) -> str:
    """Return what runs must share to be measured alike: data and network."""
    config = read_run(home)
    return json.dumps([config.dataset, config.model, config.as_dict()["data"]])


def _held_settings(homes: list[Path], asked: DiagnoseOptions) -> dict[str, SuiteSettings]:
    """Return the settings of what is already diagnosed, so that a diagnosis that was stopped goes on alike."""
    found: dict[str, SuiteSettings] = {}
    for home in homes if not asked.again else ():
        content = _known(home, asked, None)
        if content is not None:
            with contextlib.suppress(TypeError):
                found.setdefault(_alike(home), SuiteSettings(**content["settings"]))
    return found


def _known(home: Path, asked: DiagnoseOptions, settings: SuiteSettings | None) -> dict[str, Any] | None:
    """Return a run's diagnosis if it is what is asked for."""
    path = home / DIAGNOSIS
    if asked.again or not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    if {key: content.get(key) for key in asked.about} != asked.about:
        return None
    return content if settings is None or content.get("settings") == vars(settings) else None


def _teller(
    update: Callable[[str], None], name: str, number: int, count: int, left: float | None
) -> Callable[[str], None]:
    rest = f", about {left / 60:.0f} min left" if left is not None else ""
    return lambda what: update(f"{name}: {what} ({number + 1} of {count}{rest})")


def _record(home: Path) -> Record:
    config = read_run(home)
    path = home / engine.RESULT
    result = records.read_result(path)
    metrics = records.read_epochs(home / "metrics.jsonl")
    return Record(home.name, config.method, config.model, config.dataset, config.seed, metrics, [], result)
