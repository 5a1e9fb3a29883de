"""Slices of the loss: along lines and planes through a network, and between networks.

Every point is evaluated where it says it is, on all samples of the surface. BatchNorm's running statistics are
those of the network (between networks: interpolated like the weights; on a plane of checkpoints: those of the
nearest one), or, with ``statistics``, estimated anew at every point on the data given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from steppe import records
from steppe.core.numerics import vector as vec
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.landscape_directions import Plane, State, of_state, parameter_names
from steppe.diagnostics.loss_surface import LossSurface, SurfaceValue
from steppe.errors import InputError

ProgressCallback = Callable[[int, int], None]
Statistics = Sequence[Any] | None


@dataclass(frozen=True)
class LandscapePoint:
    """One point of a slice: its coordinates, the loss there, and the accuracy where there is one."""

    at: tuple[float, ...]
    loss: float
    accuracy: float | None


def slice_along(
    surface: LossSurface,
    directions: Sequence[Vec],
    places: Iterable[Sequence[float]],
    *,
    statistics: Statistics = None,
    path: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[LandscapePoint]:
    r"""Return the loss at :math:`w + \sum_i c_i d_i` for each place :math:`c`, the network's own at the origin.

    Args:
        surface: The network and its data.
        directions: One for a line, two for a plane; see `landscape_directions.random_direction`.
        places: Coordinates, as many numbers each as there are directions.
        statistics: Batches on which BatchNorm's statistics are estimated anew at each point.
        path: File of JSON lines that each point is added to; what it already has is not computed again.
        progress: Hears how many points are done of how many.

    Raises:
        InputError: A place has not one number per direction, or the file belongs to another slice.
        RunError: The file cannot be written.
    """
    wanted = [tuple(map(float, place)) for place in places]
    if any(len(place) != len(directions) for place in wanted):
        raise InputError(f"a place has not {len(directions)} numbers; give one per direction")

    @contextmanager
    def there(place: tuple[float, ...]) -> Iterator[None]:
        offset: Vec = [None] * len(surface.params)
        for c, d in zip(place, directions, strict=True):
            offset = vec.add(offset, d, by=c)
        with surface.at(offset):
            yield

    about = _fingerprint(surface, [*surface.params], *directions)
    return _walk(surface, wanted, there, statistics, path, about, progress)


def grid(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Return the places of a rectangle, row by row."""
    return [(x, y) for y in ys for x in xs]


def evaluate_on_plane(
    surface: LossSurface,
    plane: Plane,
    states: Sequence[State],
    places: Iterable[tuple[float, float]],
    *,
    mode: Literal["plane", "nearest"] = "plane",
    statistics: Statistics = None,
    path: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[LandscapePoint]:
    """Return the loss on a plane through checkpoints (see `landscape_directions.principal_plane`).

    In mode 'plane' every point lies on the plane, which the checkpoints themselves do not. In mode 'nearest' it is
    as far off as the nearest checkpoint is, so that each checkpoint's own loss is at its place and neighbouring
    points may belong to different planes (the way of the OKDPH paper's figures). Buffers are the nearest
    checkpoint's in both.

    Raises what `slice_along` raises, and InputError for a checkpoint of another architecture.
    """
    if mode not in ("plane", "nearest"):
        raise InputError(f"mode is {mode!r}; choose plane or nearest")
    names = parameter_names(surface)

    @contextmanager
    def there(place: tuple[float, ...]) -> Iterator[None]:
        x, y = place
        index = plane.nearest(x, y)
        anchor = states[index]
        if mode == "plane":
            weights, (dx, dy) = plane.mean, (x, y)
        else:
            weights = [of_state(anchor, n, p) for n, p in zip(names, surface.params, strict=True)]
            dx, dy = x - float(plane.places[index, 0]), y - float(plane.places[index, 1])
        with surface.being(weights, _buffers(surface, anchor)), surface.at(_along(plane.axes, dx, dy)):
            yield

    wanted = [(float(x), float(y)) for x, y in places]
    about = _fingerprint(surface, plane.mean, *plane.axes) + f" {mode}"
    return _walk(surface, wanted, there, statistics, path, about, progress)


def between(
    surface: LossSurface,
    states: Sequence[State],
    shares: Iterable[Sequence[float]],
    *,
    statistics: Statistics = None,
    path: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[LandscapePoint]:
    r"""Return the loss at mixtures of networks, :math:`\sum_i \lambda_i w_i`.

    Running statistics are mixed as the weights are. `segment` and `simplex` give the shares. Counters and other
    whole numbers are the first network's.

    Raises what `slice_along` raises, and InputError if shares do not sum to 1 or a network is of another
    architecture.
    """
    wanted = [tuple(map(float, share)) for share in shares]
    for share in wanted:
        if len(share) != len(states) or abs(sum(share) - 1) > 1e-9:
            raise InputError(f"shares are {share}; give one per network, of sum 1")
    names = parameter_names(surface)

    @contextmanager
    def there(share: tuple[float, ...]) -> Iterator[None]:
        weights: Vec = [_mixed(states, share, n, p) for n, p in zip(names, surface.params, strict=True)]
        buffers = {n: _mixed(states, share, n, b) for n, b in surface.net.named_buffers() if n in states[0]}
        with surface.being(weights, buffers):
            yield

    held: list[Vec] = [[of_state(s, n, p) for n, p in zip(names, surface.params, strict=True)] for s in states]
    about = _fingerprint(surface, *held)
    return _walk(surface, wanted, there, statistics, path, about, progress)


def segment(points: int = 21) -> list[tuple[float, float]]:
    """Return the shares of two networks along the line between them, both ends included."""
    return [(1 - i / (points - 1), i / (points - 1)) for i in range(points)]


def simplex(corners: int, divisions: int) -> list[tuple[float, ...]]:
    """Return the shares of ``corners`` networks at all points of a triangular grid, corners included."""

    def parts(left: int, places: int) -> Iterator[tuple[int, ...]]:
        if places == 1:
            yield (left,)
            return
        for first in range(left, -1, -1):
            for rest in parts(left - first, places - 1):
                yield (first, *rest)

    return [tuple(c / divisions for c in cut) for cut in parts(divisions, corners)]


def barrier(spots: Sequence[LandscapePoint]) -> float:
    r"""Return the loss barrier, :math:`\max_\lambda L(\sum\lambda_i w_i) - \sum\lambda_i L(w_i)`, never below 0.

    ``spots`` are `between`'s, corners included (Frankle et al., ICML 2020; Entezari et al., ICLR 2022).

    Raises InputError if a corner is missing.
    """
    count = len(spots[0].at)
    corners = {s.at.index(1.0): s.loss for s in spots if 1.0 in s.at}
    if len(corners) < count:
        raise InputError("a network's own loss is missing; give shares that include every corner")
    return max(s.loss - sum(c * corners[i] for i, c in enumerate(s.at) if c) for s in spots)


def width(spots: Sequence[LandscapePoint], rise: float) -> float:
    """Return how far one can go along a line until the loss has risen by ``rise``, both ways added.

    Linear between points; infinite where it never rises so far within the line. The line must have a point at 0.
    """
    line = sorted(spots, key=lambda s: s.at)
    middle = next(i for i, s in enumerate(line) if s.at[0] == 0)
    top, total = line[middle].loss + rise, 0.0
    for way in (line[middle:], line[middle::-1]):
        reached = torch.inf
        for a, b in pairwise(way):
            if not b.loss < top:  # also where the loss is not a number
                share = (top - a.loss) / (b.loss - a.loss) if b.loss < torch.inf else 0.0
                reached = abs(a.at[0] + share * (b.at[0] - a.at[0]))
                break
        total += reached
    return total


def _walk(
    surface: LossSurface,
    places: Sequence[tuple[float, ...]],
    there: Callable[[tuple[float, ...]], Any],
    statistics: Statistics,
    path: Path | None,
    about: str,
    progress: ProgressCallback | None,
) -> list[LandscapePoint]:
    """Evaluate each place that the file does not have yet."""
    how = "network's" if statistics is None else f"of {len(statistics)} batches"
    about = f"{about} statistics {how}"
    known = _known(path, about) if path is not None else {}
    spots: list[LandscapePoint] = []
    for done, place in enumerate(places):
        spot = known.get(place)
        if spot is None:
            with there(place), nullcontext() if statistics is None else surface.recalibrated(statistics):
                value: SurfaceValue = surface.value()
            spot = LandscapePoint(place, value.loss, value.accuracy)
            if path is not None:
                row = {"at": list(place), "loss": spot.loss, "accuracy": spot.accuracy}
                records.append_line(path, row)
        spots.append(spot)
        if progress is not None:
            progress(done + 1, len(places))
    return spots


def _known(path: Path, about: str) -> dict[tuple[float, ...], LandscapePoint]:
    """Return what the file has; start it if there is none."""
    lines = records.read_lines(path)
    if not lines:
        records.append_line(path, {"slice": about})
        return {}
    if lines[0].get("slice") != about:
        raise InputError(f"{path} holds another slice; delete it, or choose another file")
    found = {}
    for line in lines[1:]:
        place = tuple(map(float, line["at"]))
        # a loss that is not finite is written as null
        found[place] = LandscapePoint(place, torch.nan if line["loss"] is None else line["loss"], line["accuracy"])
    return found


def _fingerprint(surface: LossSurface, *vectors: Vec) -> str:
    """Return what tells one slice from another: weights, directions and samples."""
    digest = hashlib.sha256()
    inputs = [part.x for part in surface.batch.parts()]
    samples = [t for x in inputs for t in (x.values() if isinstance(x, Mapping) else [x])]
    for t in [*samples, *(t for vector in vectors for t in vector)]:
        held = torch.empty(0) if t is None else t.detach().cpu().reshape(-1)
        digest.update(f"{held.dtype} {len(held)}".encode() + held.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _along(axes: tuple[Vec, Vec], x: float, y: float) -> Vec:
    return vec.add(vec.scale(axes[0], x), axes[1], by=y)


def _buffers(surface: LossSurface, state: State) -> dict[str, Tensor]:
    return {n: of_state(state, n, b) for n, b in surface.net.named_buffers() if n in state}


def _mixed(states: Sequence[Mapping[str, Tensor]], share: tuple[float, ...], name: str, like: Tensor) -> Tensor:
    """Return a tensor of the mixture; at a corner that network's own, bit for bit."""
    tensors = [of_state(s, name, like) for s in states]
    if 1.0 in share:
        return tensors[share.index(1.0)]
    if not like.is_floating_point():
        return tensors[0]
    return torch.stack([c * t.double() for c, t in zip(share, tensors, strict=True)]).sum(0)
