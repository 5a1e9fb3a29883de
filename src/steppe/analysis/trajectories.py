"""How the runs of one seed went from their start, in the plane that holds most of it.

The plane is that of the first two principal components of all weights that the runs kept while they trained
(`Watch.weights`; figures 2 to 5 of the OKDPH paper's supplement).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from steppe.analysis.endpoint_plane import Extent, NotComparable, window
from steppe.analysis.load_run import TrainedRun
from steppe.data.dataset import Images
from steppe.data.splits import subset
from steppe.diagnostics.landscape import evaluate_on_plane, grid
from steppe.diagnostics.landscape_directions import State, parameter_names, principal_plane
from steppe.diagnostics.loss_surface import LossSurface
from steppe.training.monitor import DEPLOYED, load_weights, weights_name


def epochs_kept(folder: Path) -> list[int]:
    """Return the epochs whose weights a run has kept, rising."""
    stems = [path.name.removesuffix(".safetensors").partition("-")[2] for path in folder.glob(weights_name("*"))]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def trajectories(
    folders: Mapping[str, Path],
    first: TrainedRun,
    images: Images,
    extent: Extent,
    say: Callable[[str], None],
    points: Path | None = None,
) -> dict[str, Any]:
    """Return the plane of the trajectories of runs of one seed, the loss on it, and where each run was on it when.

    Of a run of several networks, each one's way is a track of its own. Only tracks from the weights that ``first``
    started from are taken; those that began elsewhere are named. Every point of the plane is evaluated on it,
    BatchNorm's statistics estimated anew there on training images; no checkpoint lies exactly on it, so each one's
    distance and its own loss are told too.

    Args:
        folders: Folder of each run by the name of its method, that of ``first`` in front.
        first: The network, its images and its start.
        images: What the loss is measured on.
        extent: How finely.
        say: Hears what is being done.
        points: File that each point of the plane is added to; what it already has is not computed again.

    Raises NotAlike if fewer than three checkpoints share the start.
    """
    surface = first.surface(subset(images, extent.samples))
    names = parameter_names(surface)
    tracks: list[dict[str, Any]] = []
    states: list[State] = []
    elsewhere: list[str] = []
    for method, folder in folders.items():
        epochs = epochs_kept(folder)
        held = [load_weights(folder / weights_name(epoch)) for epoch in epochs]
        for network in held[0] if epochs[:1] == [0] else ():
            way = [one[network] for one in held]
            name = method if network == DEPLOYED else f"{method}, {network}"
            if not _begins(way[0], first, names):
                elsewhere.append(name)
            elif network == DEPLOYED or not _same(way, [one[DEPLOYED] for one in held], names):
                tracks.append({"method": method, "name": name, "epochs": epochs})
                states += way
    if len(states) < 3:
        raise NotComparable("fewer than three checkpoints share a start; there is no plane through them")
    say("the plane of all trajectories")
    plane = principal_plane(surface, states)
    statistics = first.batches(subset(first.images.train, extent.statistics))
    xs, ys = window(plane, extent)

    def told(done: int, count: int) -> None:
        say(f"loss on the plane of all trajectories, point {done} of {count}")

    spots = evaluate_on_plane(
        surface, plane, states, grid(xs, ys), statistics=statistics, path=points, progress=told
    )
    losses = [s.loss for s in spots]
    at = 0
    for track in tracks:
        rows = slice(at, at + len(track["epochs"]))
        at = rows.stop
        track["places"] = plane.places[rows].tolist()
        track["residuals"] = plane.residuals[rows].tolist()
        track["own"] = [_own(surface, state, names) for state in states[rows]]
    return {
        "extent": asdict(extent),
        "seed": first.run.seed,
        "tracks": tracks,
        "elsewhere": elsewhere,
        "explained": list(plane.explained),
        "xs": xs,
        "ys": ys,
        "loss": [losses[i : i + extent.side] for i in range(0, len(losses), extent.side)],
    }


def _begins(state: State, first: TrainedRun, names: list[str]) -> bool:
    """Return whether a track begins with these initial weights, and so is of this architecture too."""
    shared = all(name in state and name in first.start for name in names)
    return shared and all(torch.equal(state[name], first.start[name].cpu()) for name in names)


def _same(a: list[State], b: list[State], names: list[str]) -> bool:
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in names)


def _own(surface: LossSurface, state: State, names: list[str]) -> float:
    """Return a checkpoint's loss with its own weights and running statistics."""
    buffers = {n: state[n].to(b.device) for n, b in surface.net.named_buffers() if n in state}
    with surface.being([state[n].to(p) for n, p in zip(names, surface.params, strict=True)], buffers):
        return surface.loss()
