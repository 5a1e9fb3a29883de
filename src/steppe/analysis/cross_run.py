"""Comparisons between the runs of one seed, written to files of the comparison and updated only when needed."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe import hardware, records
from steppe.analysis.endpoint_plane import NotComparable, Progress, Resolution, endpoint_plane
from steppe.analysis.load_run import Which, load
from steppe.analysis.trajectories import saved_epochs, trajectories
from steppe.data.dataset import DataSet
from steppe.records import Record
from steppe.report.comparison.summary import BASELINE
from steppe.report.diagnosis.summary import ENDS, PATHS
from steppe.training import run as engine

_POINTS = ".part.jsonl"  # points of an unfinished plane


@dataclass(frozen=True)
class RunGroup:
    """The runs of one data set, network and seed, plain training first.

    Attributes:
        folders: Folder of each run by its method's name.
        which, part: The weights, and the images: 'val' or 'train'.
        samples: Number of images.
    """

    folders: dict[str, Path]
    which: Which
    part: str
    samples: int

    @property
    def first(self) -> Path:
        """Return the folder of the run that the others are compared with."""
        return next(iter(self.folders.values()))


def compare_endpoints(group: RunGroup, data: DataSet, points: Path, progress: Progress) -> dict[str, Any]:
    """Return the plane of the runs' final weights; see `steppe.analysis.endpoint_plane`."""
    runs = {method: load(folder, group.which, data) for method, folder in group.folders.items()}
    return endpoint_plane(runs, getattr(data, group.part), Resolution(group.samples), progress, points)


def compare_trajectories(group: RunGroup, data: DataSet, points: Path, progress: Progress) -> dict[str, Any]:
    """Return the runs' trajectories; see `steppe.analysis.trajectories`."""
    first = load(group.first, group.which, data)
    images = getattr(data, group.part)
    return trajectories(group.folders, first, images, Resolution(group.samples), progress, points)


def write(
    folder: Path,
    diagnoses: Mapping[Path, Mapping[str, Any]],
    request: Mapping[str, Any],
    part: str,
    again: bool,
    progress: Progress,
) -> None:
    """Write endpoints and trajectories of one seed's runs, for each data set and network of a comparison.

    ``diagnoses`` are the diagnoses by folder of the runs that could be measured, and ``request`` the options they
    were made with. The seed is the first with two runs, for trajectories the first with saved weights.
    """
    groups = _groups(folder, diagnoses, request, part)
    ends = [g for g in groups if len(g[1].folders) > 1]
    paths = [g for g in groups if saved_epochs(g[1].first)]
    _update(folder / ENDS, ends, compare_endpoints, request, again, progress)
    _update(folder / PATHS, paths, compare_trajectories, request, again, progress)


def _groups(
    folder: Path, diagnoses: Mapping[Path, Mapping[str, Any]], request: Mapping[str, Any], part: str
) -> list[tuple[str, RunGroup]]:
    runs: dict[tuple[str, str, int], list[Record]] = {}
    for record in records.load(folder).records:
        if record.status == "ok" and folder / "runs" / record.digest in diagnoses:
            runs.setdefault((record.dataset, record.model, record.seed), []).append(record)
    groups = []
    for (dataset, model, _), members in runs.items():
        members.sort(key=lambda r: r.method != BASELINE)
        folders = {r.method: folder / "runs" / r.digest for r in members}
        samples = diagnoses[next(iter(folders.values()))]["settings"]["samples"]
        groups.append((f"{dataset}, {model}", RunGroup(folders, request["which"], part, samples)))
    return groups


def _update(
    path: Path,
    groups: list[tuple[str, RunGroup]],
    compare: Callable[[RunGroup, DataSet, Path, Progress], dict[str, Any]],
    request: Mapping[str, Any],
    again: bool,
    progress: Progress,
) -> None:
    """Write the comparisons of all groups; those that the file has for the same request are reused."""
    before: dict[str, Any] = {}
    if again:
        _remove_points(path)
    elif path.exists():
        with contextlib.suppress(ValueError):  # a damaged file is replaced
            before = json.loads(path.read_text())
    results: dict[str, Any] = {}
    for name, group in groups:
        if name in results:
            continue
        about = {**request, "samples": group.samples, "runs": [f.name for f in group.folders.values()]}
        if before.get(name, {}).get("about") == about:
            results[name] = before[name]
            continue
        config = engine.read_run(group.first)
        # each point is saved, so that a plane that was interrupted resumes; other requests have other files
        key = hashlib.sha256(json.dumps([name, about]).encode()).hexdigest()[:12]
        points = path.with_name(f"{path.stem}-{key}{_POINTS}")
        with hardware.threads(config.threads), contextlib.suppress(NotComparable):
            results[name] = compare(group, engine.load_images(group.first), points, progress) | {"about": about}
    if results != before:
        records.write_json(path, results)
    _remove_points(path)


def _remove_points(path: Path) -> None:
    for points in path.parent.glob(f"{path.stem}-*{_POINTS}"):
        points.unlink(missing_ok=True)
