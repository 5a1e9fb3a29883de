"""Mode connectivity: the loss on straight paths between networks, and on the triangle of three."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from steppe import records
from steppe.analysis.endpoint_plane import Progress, Resolution
from steppe.analysis.load_run import TrainedRun, Which, load, load_members
from steppe.data.dataset import Samples
from steppe.data.splits import subset
from steppe.diagnostics.landscape import barrier, evaluate_between, segment, simplex
from steppe.diagnostics.landscape_directions import State
from steppe.errors import InputError
from steppe.report.diagnosis import mode_connectivity
from steppe.training import run as engine

RESULT = "between.json"
_MOST = 3  # networks that a triangle can show
_DIVISIONS = 8  # of a side of the triangle


def write(folders: Sequence[Path], which: Which, part: str, samples: int, out: Path, progress: Progress) -> Path:
    """Write the loss between the networks of one run, or the deployed networks of several; return the figure.

    Raises:
        InputError: There are fewer than two networks or more than three runs, or their architectures or data
            differ.
        RunError: A file cannot be written.
    """
    configs = [engine.read_run(folder) for folder in folders]
    if len(folders) > _MOST:
        raise InputError(f"{len(folders)} runs are given; give 2 or 3, or one of several networks")
    if any((c.data, c.dataset) != (configs[0].data, configs[0].dataset) for c in configs):
        raise InputError("these runs are of different data; give runs of one data set and split")
    data = engine.load_images(folders[0])
    first = load(folders[0], which, data)
    if len(folders) == 1:
        states: dict[str, State] = dict(load_members(folders[0], which, data))
    else:
        runs = [first, *(load(folder, which, data) for folder in folders[1:])]
        names = [f"{c.label}, seed {c.seed}" for c in configs]
        if len(set(names)) < len(names):
            names = [f"{name}, {folder.name}" for name, folder in zip(names, folders, strict=True)]
        states = {name: run.model.state_dict() for name, run in zip(names, runs, strict=True)}
    if len(states) < 2:
        raise InputError(f"{folders[0]} is a run of one network; give 2 or 3 runs, or one of several networks")
    images = subset(getattr(data, part), samples)
    result = losses_between(dict(list(states.items())[:_MOST]), first, images, Resolution(len(images)), progress)
    result |= {"runs": list(map(str, folders)), "left_out": list(states)[_MOST:], "part": part, "which": which}
    records.make_folder(out)
    records.write_json(out / RESULT, result)
    return mode_connectivity.write(result, out)


def losses_between(
    states: Mapping[str, State], first: TrainedRun, images: Samples, resolution: Resolution, progress: Progress
) -> dict[str, Any]:
    """Return the loss along the segment between each two networks and, for three, on their triangle.

    Each has its barrier: the rise of the loss above the line, or plane, between the networks' own losses
    (`steppe.diagnostics.landscape.barrier`). BatchNorm's statistics are recomputed on training images at every
    point, also at the networks themselves.
    """
    surface = first.surface(images)
    statistics = first.batches(subset(first.images.train, resolution.statistics))
    segments, triangle = [], None
    for a, b in combinations(states, 2):
        progress(f"from {a} to {b}")
        path = segment(2 * resolution.path - 1)
        points = evaluate_between(surface, [states[a], states[b]], path, statistics=statistics)
        values = {"at": [p.at[1] for p in points], "loss": [p.loss for p in points], "barrier": barrier(points)}
        segments.append({"from": a, "to": b, **values})
    if len(states) == _MOST:
        progress("between all three")
        points = evaluate_between(surface, [*states.values()], simplex(_MOST, _DIVISIONS), statistics=statistics)
        triangle = {"at": [p.at for p in points], "loss": [p.loss for p in points], "barrier": barrier(points)}
    extent, networks = asdict(resolution), list(states)
    unit = "nats" if first.classifies else ""
    return {
        "extent": extent, "networks": networks, "segments": segments, "triangle": triangle, "unit": unit
    }  # fmt: skip
