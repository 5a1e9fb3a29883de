"""The measures of several runs within a time budget for each, written to the runs' folders."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe import hardware, records
from steppe.analysis.endpoint_plane import Progress
from steppe.analysis.load_run import Which, load
from steppe.analysis.suite import FORMAT, CorruptedImages, SuiteSettings, fit_to_budget, run_suite
from steppe.config import Run
from steppe.data.dataset import DataSet, Samples
from steppe.errors import InputError
from steppe.report.diagnosis.summary import DIAGNOSIS
from steppe.training import run as engine


@dataclass(frozen=True)
class Request:
    """What is requested of a diagnosis.

    Attributes:
        seconds: Time for each run, which sets the number of samples.
        which: The last or the best epoch's weights.
        on: The samples: 'val' or 'train'.
        corruptions: Folder of published corrupted images; None to generate them.
        bounds: Whether PAC-Bayes bounds are computed.
        again: Whether to measure anew what has been measured.
    """

    seconds: float = 8.0
    which: Which = "last"
    on: str = "val"
    corruptions: str | None = None
    bounds: bool = False
    again: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return what a diagnosis depends on, as its file has it."""
        return {
            "format": FORMAT,
            "which": self.which,
            "part": {"val": "validation", "train": "training"}[self.on],
            "seconds": self.seconds,
            "corruptions": None if self.corruptions is None else Path(self.corruptions).resolve().name,
            "bounds": self.bounds,
        }


def finished_runs(folder: Path) -> list[Path]:
    """Return the folders of a comparison's finished runs."""
    finished = [r for r in records.load(folder).records if r.status == "ok"]
    if not finished:
        raise InputError(f"no run of {folder} has finished; finish the comparison first")
    return [folder / "runs" / r.digest for r in finished]


def diagnose_runs(
    homes: list[Path], request: Request, status: Progress, report: Callable[[str], None]
) -> dict[Path, dict[str, Any]]:
    """Diagnose every run that has no diagnosis; runs of equal data and network have equal settings.

    Where there are several runs, one that cannot be measured is named, and the others are measured. ``status`` is
    called with the measure at work, ``report`` with a line for each run.

    Raises InputError if no run can be measured.
    """
    results: dict[Path, dict[str, Any]] = {}
    settings = _existing_settings(homes, request)
    data: dict[str, DataSet] = {}
    corrupted = CorruptedImages(None if request.corruptions is None else Path(request.corruptions))
    began, measured = time.monotonic(), 0
    for number, home in enumerate(homes):
        config = engine.read_run(home)
        group = _group(config)
        existing = _existing_diagnosis(home, request, settings.get(group))
        if existing is not None:
            results[home] = existing
            continue
        key = json.dumps([str(home.parent), config.dataset, config.as_dict()["data"]])
        if key not in data:
            data = {key: engine.load_images(home)}
        title, position = config.title, f"{number + 1} of {len(homes)}"
        if measured:
            left = (time.monotonic() - began) / measured * (len(homes) - number)
            position += f", about {left / 60:.0f} min left"
        update = _labelled(status, title, position)
        try:
            with hardware.threads(config.threads):
                trained = load(home, request.which, data[key])
                samples: Samples = getattr(data[key], request.on)
                if group not in settings:
                    settings[group] = fit_to_budget(trained, samples, request.seconds, bounds=request.bounds)
                result = run_suite(trained, samples, settings[group], corrupted, update)
        except InputError as error:
            if number + 1 == len(homes) and not results:
                raise
            records.write_json(home / DIAGNOSIS, {"error": str(error)} | request.as_dict())
            report(f"[{number + 1}/{len(homes)}] {title}: not measured: {error}")
            continue
        measured += 1
        records.write_json(home / DIAGNOSIS, result | request.as_dict())
        results[home] = json.loads((home / DIAGNOSIS).read_text())
        report(f"[{number + 1}/{len(homes)}] {title}: {result['took']:.1f} s")
    return results


def _labelled(update: Callable[[str], None], title: str, position: str) -> Callable[[str], None]:
    return lambda measure: update(f"{title}: {measure} ({position})")


def _group(config: Run) -> str:
    """Return the data and network of a run; runs that share both are compared and need equal settings.

    Seeds with splits of their own are compared too.
    """
    return json.dumps([config.dataset, config.model, config.as_dict()["data"] | {"split_seed": 0}])


def _existing_settings(homes: list[Path], request: Request) -> dict[str, SuiteSettings]:
    """Return the settings of existing diagnoses, so that an interrupted command resumes with the same ones."""
    settings: dict[str, SuiteSettings] = {}
    for home in homes:
        diagnosis = _existing_diagnosis(home, request, None)
        if diagnosis is not None:
            with contextlib.suppress(TypeError):
                settings.setdefault(_group(engine.read_run(home)), SuiteSettings(**diagnosis["settings"]))
    return settings


def _existing_diagnosis(home: Path, request: Request, settings: SuiteSettings | None) -> dict[str, Any] | None:
    """Return a run's diagnosis if it was made for this request with these settings."""
    path = home / DIAGNOSIS
    if request.again or not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    depends = request.as_dict()
    if "error" in content or {key: content.get(key) for key in depends} != depends:
        return None
    return content if settings is None or content.get("settings") == vars(settings) else None
