"""Where the methods of one seed ended, seen from each other: the plane through their weights, the paths between.

Of runs that share a start; other networks say nothing about each other in one plane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.analysis.load_run import TrainedRun
from steppe.data.dataset import Images
from steppe.data.splits import subset
from steppe.diagnostics.landscape import barrier, between, evaluate_on_plane, grid, segment
from steppe.diagnostics.landscape_directions import Plane, State, principal_plane
from steppe.errors import InputError


class NotComparable(InputError):  # noqa: N818 - says what is the case
    """These runs have no plane in common."""


@dataclass(frozen=True)
class Extent:
    """How finely it is looked at.

    Attributes:
        samples: Images that the loss is measured on.
        statistics: Training images that BatchNorm's statistics are estimated on, at every point anew.
        side: Points of a side of the plane.
        path: Points of a path.
        margin: What the plane shows beyond the runs, in parts of their extent.
    """

    samples: int
    statistics: int = 128
    side: int = 13
    path: int = 9
    margin: float = 0.25


def endpoint_plane(
    trained: Mapping[str, TrainedRun],
    images: Images,
    extent: Extent,
    say: Callable[[str], None],
    points: Path | None = None,
) -> dict[str, Any]:
    """Return the plane through the start and the ends of runs of one seed, and the loss along the way to each.

    The plane is spanned by the first two principal components of the common start and all ends; no end lies
    exactly on it, so each one's own loss and its distance from the plane are told too. Paths are straight, from
    the first run to each of the others, with the barrier on the way. At every point BatchNorm's statistics are
    estimated anew on training images: those of a network's own would be wrong between networks. ``points`` is a
    file that each point of the plane is added to; what it already has is not computed again.

    Raises NotAlike if there are fewer than two runs of one start and architecture.
    """
    names = list(trained)
    first = trained[names[0]]
    alike = [n for n in names if _same_start(first, trained[n])]
    if len(alike) < 2:
        raise NotComparable(
            "fewer than two runs share a start and an architecture; there is no plane through them"
        )
    chosen = subset(images, extent.samples)
    surface = first.surface(chosen)
    states: list[State] = [first.start]
    states += [{k: v.detach().clone() for k, v in trained[n].model.state_dict().items()} for n in alike]
    statistics = first.batches(subset(first.images.train, extent.statistics))
    plane = principal_plane(surface, states)
    xs, ys = window(plane, extent)

    def told(done: int, count: int) -> None:
        say(f"loss on the plane through all ends, point {done} of {count}")

    spots = evaluate_on_plane(
        surface, plane, states, grid(xs, ys), statistics=statistics, path=points, progress=told
    )
    losses = [s.loss for s in spots]
    found: dict[str, Any] = {
        "extent": asdict(extent),
        "seed": first.run.seed,
        "methods": alike,
        "places": plane.places.tolist(),
        "residuals": plane.residuals.tolist(),
        "explained": list(plane.explained),
        "xs": xs,
        "ys": ys,
        "loss": [losses[i : i + extent.side] for i in range(0, len(losses), extent.side)],
        "own": [trained[n].surface(chosen).loss() for n in alike],
        "paths": {},
    }
    for name, state in zip(alike[1:], states[2:], strict=True):
        say(f"the way from {alike[0]} to {name}")
        way = between(surface, [states[1], state], segment(extent.path), statistics=statistics)
        found["paths"][name] = {"loss": [s.loss for s in way], "barrier": barrier(way)}
    return found


def window(plane: Plane, extent: Extent) -> tuple[list[float], list[float]]:
    """Return the coordinates of a grid on the plane that shows all checkpoints with a margin around them."""
    low, high = plane.places.min(0), plane.places.max(0)
    rim = extent.margin * np.maximum(high - low, 0.25 * (high - low).max())
    xs, ys = (np.linspace(low[i] - rim[i], high[i] + rim[i], extent.side).tolist() for i in (0, 1))
    return xs, ys


def _same_start(a: TrainedRun, b: TrainedRun) -> bool:
    """Return whether two runs began with the same trainable weights."""
    ours, theirs = ({n: t.start.get(n) for n, _ in t.model.named_parameters()} for t in (a, b))
    if set(ours) != set(theirs):
        return False
    pairs = [(ours[n], theirs[n]) for n in ours]
    return all(p is not None and q is not None and torch.equal(p, q) for p, q in pairs)
