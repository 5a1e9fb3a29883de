"""Trajectories of runs of one seed, on the plane of the first two principal components of all saved weights.

The weights are those that the runs saved during training (`Monitoring.weights`); see figures 2 to 5 of the OKDPH
paper's supplement.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from steppe.analysis.endpoint_plane import NotComparable, Progress, Resolution, evaluate_plane
from steppe.analysis.load_run import TrainedRun
from steppe.core.numerics.complex_params import real_view
from steppe.data.dataset import Samples
from steppe.data.splits import subset
from steppe.diagnostics.landscape_directions import State, parameter_names
from steppe.diagnostics.loss_surface import LossSurface
from steppe.training.monitor import DEPLOYED, load_weights, weights_name


def saved_epochs(folder: Path) -> list[int]:
    """Return the epochs whose weights a run has saved, in ascending order."""
    stems = [path.name.removesuffix(".safetensors").partition("-")[2] for path in folder.glob(weights_name("*"))]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def trajectories(
    folders: Mapping[str, Path],
    first: TrainedRun,
    images: Samples,
    resolution: Resolution,
    progress: Progress,
    points: Path | None = None,
) -> dict[str, Any]:
    """Return the plane of the trajectories of runs of one seed, the loss on it, and each run's positions on it.

    Each network of a run of several has a track of its own, from its own start. Networks of another architecture
    than that of ``first`` are left out and named. No checkpoint lies exactly on the plane, so the result has
    each one's own loss and distance from the plane. ``folders`` has each run's folder by the name of its method,
    that of ``first`` in front. The loss is measured on ``images``; ``points`` is as in `evaluate_plane`.

    Raises NotComparable if there are fewer than three checkpoints of one architecture.
    """
    surface = first.surface(subset(images, resolution.samples))
    names = parameter_names(surface)
    tracks: list[dict[str, Any]] = []
    states: list[State] = []
    elsewhere: list[str] = []
    for method, folder in folders.items():
        epochs = saved_epochs(folder)
        if epochs[:1] != [0]:
            continue
        saved = [load_weights(folder / weights_name(epoch)) for epoch in epochs]
        for network in saved[0]:
            track = [weights[network] for weights in saved]
            name = method if network == DEPLOYED else f"{method}, {network}"
            if not _fits(track[0], first, names):
                elsewhere.append(name)
            elif network == DEPLOYED or not _equal(track, [weights[DEPLOYED] for weights in saved], names):
                tracks.append({"method": method, "name": name, "epochs": epochs})
                states += track
    if len(states) < 3:
        raise NotComparable("fewer than three checkpoints of one architecture; there is no plane through them")
    label = "the plane of all trajectories"
    plane, result = evaluate_plane(first, surface, states, resolution, label, progress, points)
    begin = 0
    for entry in tracks:
        rows = slice(begin, begin + len(entry["epochs"]))
        begin = rows.stop
        entry["places"] = plane.coordinates[rows].tolist()
        entry["residuals"] = plane.residuals[rows].tolist()
        entry["own"] = [_loss_of(surface, state, names) for state in states[rows]]
    return result | {"tracks": tracks, "elsewhere": elsewhere}


def _fits(state: State, first: TrainedRun, names: list[str]) -> bool:
    """Return whether a network has the architecture of ``first``."""
    return all(n in state and n in first.start and state[n].shape == first.start[n].shape for n in names)


def _equal(a: list[State], b: list[State], names: list[str]) -> bool:
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in names)


def _loss_of(surface: LossSurface, state: State, names: list[str]) -> float:
    """Return a checkpoint's loss with its own weights and running statistics."""
    buffers = {n: state[n].to(b.device) for n, b in surface.net.named_buffers() if n in state}
    with surface.with_values(
        [real_view(state[n]).to(p) for n, p in zip(names, surface.params, strict=True)], buffers
    ):
        return surface.loss()
