"""Final weights of runs of one seed: the plane through them, and the loss on straight paths between them.

The runs must share their initial weights; other networks cannot be compared in one plane.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.analysis.load_run import TrainedRun
from steppe.data.dataset import Samples
from steppe.data.splits import subset
from steppe.diagnostics.landscape import barrier, evaluate_between, evaluate_on_plane, grid, segment
from steppe.diagnostics.landscape_directions import Plane, State, principal_plane
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

Progress = Callable[[str], None]  # called with a message about the current work


class NotComparable(InputError):  # noqa: N818 - a statement about the runs
    """These runs have no plane in common."""


@dataclass(frozen=True)
class Resolution:
    """The resolution of planes and paths.

    Attributes:
        samples: Images that the loss is measured on.
        statistics: Training images on which BatchNorm's statistics are recomputed at every point.
        side: Points per side of the plane.
        path: Points of a path.
        margin: Margin of the plane around the checkpoints, as a share of their extent.
    """

    samples: int
    statistics: int = 128
    side: int = 13
    path: int = 9
    margin: float = 0.25


def endpoint_plane(
    runs: Mapping[str, TrainedRun],
    images: Samples,
    resolution: Resolution,
    progress: Progress,
    points: Path | None = None,
) -> dict[str, Any]:
    """Return the plane through the start and the ends of runs of one seed, and the loss on the path to each end.

    The axes are the first two principal components of the common start and all ends. No end lies exactly on the
    plane, so the result has each one's own loss and distance from the plane. Paths are straight, from the first
    run to each of the others, with their barriers. ``points`` is as in `evaluate_plane`.

    Raises NotComparable if fewer than two runs share a start and an architecture.
    """
    first = runs[next(iter(runs))]
    comparable = {name: run for name, run in runs.items() if _same_start(first, run)}
    if len(comparable) < 2:
        raise NotComparable(
            "fewer than two runs share a start and an architecture; there is no plane through them"
        )
    chosen = subset(images, resolution.samples)
    surface = first.surface(chosen)
    ends: list[State] = [
        {k: v.detach().clone() for k, v in run.model.state_dict().items()} for run in comparable.values()
    ]
    label = "the plane through all ends"
    plane, result = evaluate_plane(first, surface, [first.start, *ends], resolution, label, progress, points)
    result |= {
        "methods": list(comparable),
        "places": plane.coordinates.tolist(),
        "residuals": plane.residuals.tolist(),
        "own": [run.surface(chosen).loss() for run in comparable.values()],
        "paths": {},
    }
    statistics = first.batches(subset(first.images.train, resolution.statistics))
    for name, end in list(zip(comparable, ends, strict=True))[1:]:
        progress(f"the path to {name}")
        path = evaluate_between(surface, [ends[0], end], segment(resolution.path), statistics=statistics)
        result["paths"][name] = {"loss": [p.loss for p in path], "barrier": barrier(path)}
    return result


def evaluate_plane(
    first: TrainedRun,
    surface: LossSurface,
    states: Sequence[State],
    resolution: Resolution,
    label: str,
    progress: Progress,
    points: Path | None,
) -> tuple[Plane, dict[str, Any]]:
    """Return the principal plane of checkpoints, and the loss on a grid around them.

    BatchNorm's statistics are recomputed on training images at every point: those of a network would be wrong
    between networks. Each point is written to the file ``points``; points already in it are not computed again.

    Raises NotComparable if the checkpoints span no plane.
    """
    try:
        plane = principal_plane(surface, states)
    except InputError as error:  # equal runs, say, lie on one line
        raise NotComparable(str(error)) from error
    low, high = plane.coordinates.min(0), plane.coordinates.max(0)
    rim = resolution.margin * np.maximum(high - low, 0.25 * (high - low).max())
    xs, ys = (np.linspace(low[i] - rim[i], high[i] + rim[i], resolution.side).tolist() for i in (0, 1))
    evaluated = evaluate_on_plane(
        surface,
        plane,
        states,
        grid(xs, ys),
        statistics=first.batches(subset(first.images.train, resolution.statistics)),
        path=points,
        progress=lambda done, count: progress(f"loss on {label}, point {done} of {count}"),
    )
    losses = [p.loss for p in evaluated]
    return plane, {
        "extent": asdict(resolution),
        "seed": first.run.seed,
        "explained": list(plane.explained),
        "xs": xs,
        "ys": ys,
        "loss": [losses[i : i + resolution.side] for i in range(0, len(losses), resolution.side)],
    }


def _same_start(a: TrainedRun, b: TrainedRun) -> bool:
    """Return whether two runs began with the same trainable weights."""
    starts = [{n: run.start.get(n) for n, _ in run.model.named_parameters()} for run in (a, b)]
    if set(starts[0]) != set(starts[1]):
        return False
    pairs = [(starts[0][n], starts[1][n]) for n in starts[0]]
    return all(p is not None and q is not None and torch.equal(p, q) for p, q in pairs)
