"""What the runs of one seed say together, kept in a file of the comparison and made anew only where it must be."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steppe import hardware, records
from steppe.analysis.endpoint_plane import Extent, NotComparable, endpoint_plane
from steppe.analysis.load_run import Which, load, read_run
from steppe.analysis.trajectories import epochs_kept, trajectories
from steppe.data.dataset import DataSet, Images
from steppe.records import Record
from steppe.report.comparison.summary import BASELINE
from steppe.report.diagnosis.summary import ENDS, PATHS
from steppe.training import run

Say = Callable[[str], None]
Found = Mapping[Path, Mapping[str, Any]]
_POINTS = ".part.jsonl"


@dataclass(frozen=True)
class RunGroup:
    """The runs of one data set, network and seed, plain training first, and what is looked at.

    Attributes:
        folders: Folder of each run by its method's name.
        which, part: Which weights, and which images: 'val' or 'train'.
        samples: How many images.
    """

    folders: dict[str, Path]
    which: Which
    part: str
    samples: int

    @property
    def first(self) -> Path:
        """Return the run that the others are seen from."""
        return next(iter(self.folders.values()))

    def images(self, data: DataSet) -> Images:
        """Return the images that the loss is measured on."""
        images: Images = getattr(data, self.part)
        return images


def compare_endpoints(group: RunGroup, data: DataSet, points: Path, say: Say) -> dict[str, Any]:
    """Return where the runs ended; see `steppe.analysis.endpoint_plane.endpoint_plane`."""
    trained = {method: load(home, group.which, data) for method, home in group.folders.items()}
    return endpoint_plane(trained, group.images(data), Extent(group.samples), say, points)


def compare_trajectories(group: RunGroup, data: DataSet, points: Path, say: Say) -> dict[str, Any]:
    """Return how the runs went; see `steppe.analysis.trajectories.trajectories`."""
    first = load(group.first, group.which, data)
    return trajectories(group.folders, first, group.images(data), Extent(group.samples), say, points)


def write(folder: Path, found: Found, about: Mapping[str, Any], part: str, again: bool, say: Say) -> None:
    """Write where the runs of one seed ended and how they went, for each data set and network of a comparison.

    ``found`` are the runs' diagnoses by folder, ``about`` how they were asked for. The seed is the first that
    has two runs, and for their ways the first that has kept weights.
    """
    groups = _groups(folder, found, about, part)
    _write(folder / ENDS, [g for g in groups if len(g[1].folders) > 1], compare_endpoints, about, again, say)
    _write(folder / PATHS, [g for g in groups if epochs_kept(g[1].first)], compare_trajectories, about, again, say)


def _groups(folder: Path, found: Found, about: Mapping[str, Any], part: str) -> list[tuple[str, RunGroup]]:
    runs: dict[tuple[str, str, int], list[Record]] = {}
    for record in records.load(folder).records:
        if record.status == "ok":
            runs.setdefault((record.dataset, record.model, record.seed), []).append(record)
    groups = []
    for (dataset, model, _), own in runs.items():
        homes = {r.method: folder / "runs" / r.digest for r in sorted(own, key=lambda r: r.method != BASELINE)}
        samples = found[next(iter(homes.values()))]["settings"]["samples"]
        groups.append((f"{dataset}, {model}", RunGroup(homes, about["which"], part, samples)))
    return groups


def _write(
    path: Path,
    groups: list[tuple[str, RunGroup]],
    see: Callable[[RunGroup, DataSet, Path, Say], dict[str, Any]],
    about: Mapping[str, Any],
    again: bool,
    say: Say,
) -> None:
    held: dict[str, Any] = {}
    if again:
        for points in path.parent.glob(f"{path.stem}-*{_POINTS}"):
            points.unlink(missing_ok=True)
    elif path.exists():
        # a damaged one is made anew
        with contextlib.suppress(ValueError):
            held = json.loads(path.read_text())
    made: dict[str, Any] = {}
    for name, group in groups:
        if name in made:
            continue
        runs = [home.name for home in group.folders.values()]
        asked = {**about, "samples": group.samples, "runs": runs}
        if held.get(name, {}).get("about") == asked:
            made[name] = held[name]
            continue
        config = read_run(group.first)
        # each point of a plane is kept there, so that one that was stopped goes on; another's name is another
        mark = hashlib.sha256(json.dumps([name, asked]).encode()).hexdigest()[:12]
        points = path.with_name(f"{path.stem}-{mark}{_POINTS}")
        with hardware.threads(config.threads), contextlib.suppress(NotComparable):
            made[name] = see(group, run.load_data(config), points, say) | {"about": asked}
    if made != held:
        records.write_json(path, made)
    for points in path.parent.glob(f"{path.stem}-*{_POINTS}"):
        points.unlink(missing_ok=True)
