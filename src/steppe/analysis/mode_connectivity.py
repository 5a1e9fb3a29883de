"""What lies between networks: the loss on the straight ways from one to another, and on the triangle of three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from steppe import records
from steppe.analysis.endpoint_plane import Extent
from steppe.analysis.load_run import TrainedRun, Which, load, networks_of, read_run
from steppe.data.splits import subset
from steppe.diagnostics.landscape import barrier, between, segment, simplex
from steppe.diagnostics.landscape_directions import State
from steppe.errors import InputError
from steppe.report.diagnosis import mode_connectivity
from steppe.training import run

MIDDLE = "between.json"
MOST = 3  # networks whose mixtures fit a picture
_DIVISIONS = 8  # of a side of their triangle


def write(
    homes: Sequence[Path], which: Which, part: str, samples: int, out: Path, say: Callable[[str], None]
) -> Path:
    """Write the loss between the networks of one run, or between what several runs deploy; return the picture.

    Raises:
        InputError: There are fewer than two networks or more than three runs, or they differ in architecture or
            data.
        RunError: A file cannot be written.
    """
    config = read_run(homes[0])
    if len(homes) > MOST:
        raise InputError(f"{len(homes)} runs are given; give 2 or 3, or one of several networks")
    if any(read_run(home).data != config.data or read_run(home).dataset != config.dataset for home in homes):
        raise InputError("these runs are of different data; give runs of one data set and split")
    data = run.load_data(config)
    first = load(homes[0], which, data)
    if len(homes) == 1:
        held: dict[str, State] = dict(networks_of(homes[0], which, data))
    else:
        trained = [first, *(load(home, which, data) for home in homes[1:])]
        names = [f"{t.run.method}, seed {t.run.seed}" for t in trained]
        if len(set(names)) < len(names):
            names = [f"{name}, {t.folder.name}" for name, t in zip(names, trained, strict=True)]
        held = {name: t.model.state_dict() for name, t in zip(names, trained, strict=True)}
    if len(held) < 2:
        raise InputError(f"{homes[0]} is a run of one network; give 2 or 3 runs, or one of several networks")
    images = subset(getattr(data, part), samples)
    found = losses_along_paths(dict(list(held.items())[:MOST]), first, images, Extent(len(images)), say)
    found |= {"runs": [str(home) for home in homes], "left_out": list(held)[MOST:], "part": part, "which": which}
    records.make_folder(out)
    records.write_json(out / MIDDLE, found)
    return mode_connectivity.write(found, out)


def losses_along_paths(
    states: Mapping[str, State], first: TrainedRun, images: Any, extent: Extent, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the loss along the segment between each two networks and, of three, on their triangle.

    With the barrier of each: how far the loss rises above the straight line, or plane, between the networks' own
    (`steppe.diagnostics.landscape.barrier`). BatchNorm's statistics are estimated anew on training images
    everywhere, at the networks themselves too.
    """
    surface = first.surface(images)
    statistics = first.batches(subset(first.images.train, extent.statistics))
    found: dict[str, Any] = {"extent": asdict(extent), "networks": list(states), "segments": [], "triangle": None}
    told: dict[str, Any]
    for a, b in combinations(states, 2):
        say(f"from {a} to {b}")
        way = between(surface, [states[a], states[b]], segment(2 * extent.path - 1), statistics=statistics)
        found["segments"].append(
            {
                "from": a,
                "to": b,
                "at": [s.at[1] for s in way],
                "loss": [s.loss for s in way],
                "barrier": barrier(way),
            }
        )
    if len(states) == MOST:
        say("between all three")
        spots = between(surface, list(states.values()), simplex(MOST, _DIVISIONS), statistics=statistics)
        told = {"at": [s.at for s in spots], "loss": [s.loss for s in spots], "barrier": barrier(spots)}
        found["triangle"] = told
    return found
