"""Loss landscapes: the loss along lines and planes through a network, and between networks.

Every point is evaluated on all samples of the surface. BatchNorm's running statistics are those of the network
(between networks: interpolated like the weights; on a plane of checkpoints: those of the nearest one), or, with
``statistics``, recomputed at every point on these batches.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steppe import records
from steppe.core.batch import Batch
from steppe.core.numerics import vector as vec
from steppe.core.numerics.complex_params import real_view
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.landscape_directions import Plane, State, parameter_names, tensor_of
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

ProgressCallback = Callable[[int, int], None]
Statistics = Sequence[Any] | None


@dataclass(frozen=True)
class LandscapePoint:
    """One point of a landscape: its coordinates, the loss, and the accuracy if the targets are class indices."""

    at: tuple[float, ...]
    loss: float
    accuracy: float | None


def slice_along(
    surface: LossSurface,
    directions: Sequence[Vec],
    coordinates: Iterable[Sequence[float]],
    *,
    statistics: Statistics = None,
    path: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[LandscapePoint]:
    r"""Return the loss at :math:`w + \sum_i c_i d_i` for all coordinates :math:`c`; w are the network's weights.

    Args:
        surface: The network and its data.
        directions: One for a line, two for a plane; see `landscape_directions.random_direction`.
        coordinates: For each point one number per direction.
        statistics: Batches on which BatchNorm's statistics are recomputed at each point.
        path: JSON-lines file that each point is written to; points already in it are not computed again.
        progress: Called with the number of points done and their total.

    Raises:
        InputError: A point has not one coordinate per direction, or the file belongs to another landscape.
        RunError: The file cannot be written.
    """
    points = [tuple(map(float, c)) for c in coordinates]
    if any(len(point) != len(directions) for point in points):
        raise InputError(f"a point has not {len(directions)} coordinates; give one per direction")

    def move_to(point: tuple[float, ...]) -> AbstractContextManager[None]:
        offset: Vec = [None] * len(surface.params)
        for c, d in zip(point, directions, strict=True):
            offset = vec.add(offset, d, by=c)
        return surface.at(offset)

    fingerprint = _fingerprint(surface, [*surface.params], *directions) if path else ""
    return _evaluate(surface, points, move_to, statistics, path, fingerprint, progress)


def grid(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points of a rectangular grid, row by row."""
    return [(x, y) for y in ys for x in xs]


def evaluate_on_plane(
    surface: LossSurface,
    plane: Plane,
    states: Sequence[State],
    coordinates: Iterable[tuple[float, float]],
    *,
    statistics: Statistics = None,
    path: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[LandscapePoint]:
    """Return the loss on a plane through checkpoints (see `landscape_directions.principal_plane`).

    All points are on the plane, which the checkpoints in general are not. Buffers are the nearest checkpoint's.
    Arguments and errors are those of `slice_along`; InputError also for a checkpoint of another architecture.
    """

    @contextmanager
    def move_to(point: tuple[float, ...]) -> Iterator[None]:
        x, y = point
        state = states[plane.nearest(x, y)]
        buffers = {n: tensor_of(state, n, b) for n, b in surface.net.named_buffers() if n in state}
        offset = vec.add(vec.scale(plane.axes[0], x), plane.axes[1], by=y)
        with surface.with_values(plane.mean, buffers), surface.at(offset):
            yield

    points = [(float(x), float(y)) for x, y in coordinates]
    fingerprint = _fingerprint(surface, plane.mean, *plane.axes, states=states) if path else ""
    return _evaluate(surface, points, move_to, statistics, path, fingerprint, progress)


def evaluate_between(
    surface: LossSurface,
    states: Sequence[State],
    shares: Iterable[Sequence[float]],
    *,
    statistics: Statistics = None,
) -> list[LandscapePoint]:
    r"""Return the loss at mixtures of networks, :math:`\sum_i \lambda_i w_i`.

    Running statistics are mixed like the weights; counters and other integers are the first network's. `segment`
    and `simplex` return shares.

    Raises InputError if shares do not sum to 1 or a network has another architecture.
    """
    points = [tuple(map(float, share)) for share in shares]
    for point in points:
        if len(point) != len(states) or abs(sum(point) - 1) > 1e-9:
            raise InputError(f"shares are {point}; give one per network, of sum 1")
    names = parameter_names(surface)

    def move_to(point: tuple[float, ...]) -> AbstractContextManager[None]:
        weights: Vec = [_mixed(states, point, n, p) for n, p in zip(names, surface.params, strict=True)]
        buffers = {n: _mixed(states, point, n, b) for n, b in surface.net.named_buffers() if n in states[0]}
        return surface.with_values(weights, buffers)

    return _evaluate(surface, points, move_to, statistics)


def segment(points: int = 21) -> list[tuple[float, float]]:
    """Return the shares of two networks along the line between them, both ends included.

    Raises InputError for fewer than two points.
    """
    if points < 2:
        raise InputError(f"points is {points}; give at least 2, the ends")
    return [(1 - i / (points - 1), i / (points - 1)) for i in range(points)]


def simplex(corners: int, divisions: int) -> list[tuple[float, ...]]:
    """Return the shares of ``corners`` networks at all points of a triangular grid, corners included.

    Raises InputError if a number is below 1.
    """
    if corners < 1 or divisions < 1:
        raise InputError(f"corners is {corners} and divisions is {divisions}; give at least 1 of each")
    points = product(range(divisions, -1, -1), repeat=corners)
    return [tuple(c / divisions for c in counts) for counts in points if sum(counts) == divisions]


def barrier(points: Sequence[LandscapePoint]) -> float:
    r"""Return the loss barrier, :math:`\max_\lambda L(\sum\lambda_i w_i) - \sum\lambda_i L(w_i)`, at least 0.

    ``points`` are those of `evaluate_between`, corners included (Frankle et al., ICML 2020; Entezari et al., ICLR
    2022). Infinite if a loss between them is NaN.

    Raises InputError if a corner is missing.
    """
    count = len(points[0].at) if points else 1
    corners = {p.at.index(1.0): p.loss for p in points if 1.0 in p.at}
    if len(corners) < count:
        raise InputError("a network's own loss is missing; give shares that include every corner")
    rises = [p.loss - sum(c * corners[i] for i, c in enumerate(p.at) if c) for p in points]
    return math.inf if any(map(math.isnan, rises)) else max(rises)


def width(points: Sequence[LandscapePoint], rise: float) -> float:
    """Return the length of the interval around 0 on a line in which the loss rises by less than ``rise``.

    Linear between points; infinite if the loss does not rise that much within the line.

    Raises InputError without a point at 0.
    """
    line = sorted(points, key=lambda p: p.at)
    if not any(p.at[0] == 0 for p in line):
        raise InputError("no point is at 0; give coordinates that include it")
    middle = next(i for i, p in enumerate(line) if p.at[0] == 0)
    limit, total = line[middle].loss + rise, 0.0
    for half in (line[middle:], line[middle::-1]):
        length = torch.inf
        for a, b in pairwise(half):
            if not b.loss < limit:  # also if the loss is NaN
                share = (limit - a.loss) / (b.loss - a.loss) if b.loss < torch.inf else 0.0
                length = abs(a.at[0] + share * (b.at[0] - a.at[0]))
                break
        total += length
    return total


def _evaluate(
    surface: LossSurface,
    coordinates: Sequence[tuple[float, ...]],
    move_to: Callable[[tuple[float, ...]], AbstractContextManager[None]],
    statistics: Statistics,
    path: Path | None = None,
    fingerprint: str = "",
    progress: ProgressCallback | None = None,
) -> list[LandscapePoint]:
    """Evaluate each point that is not in the file."""
    saved = {}
    if path is not None:
        # the loss at the weights stands for the loss function, which cannot be hashed
        saved = _read_points(path, f"{fingerprint} {_digest(_tensors(statistics))}", surface.loss())
    points: list[LandscapePoint] = []
    for c in coordinates:
        point = saved.get(c)
        if point is None:
            with move_to(c), nullcontext() if statistics is None else surface.recalibrated(statistics):
                value = surface.value()
            point = LandscapePoint(c, value.loss, value.accuracy)
            if path is not None:
                records.append_line(path, {"at": list(c), "loss": point.loss, "accuracy": point.accuracy})
        points.append(point)
        if progress is not None:
            progress(len(points), len(coordinates))
    return points


def _read_points(path: Path, fingerprint: str, loss: float) -> dict[tuple[float, ...], LandscapePoint]:
    """Return the points of the file by coordinates; start the file if there is none."""
    lines = records.read_lines(path)
    if not lines:
        records.append_line(path, {"slice": fingerprint, "loss": loss})
        return {}
    before = lines[0].get("loss")
    same = (
        math.isclose(before, loss, rel_tol=1e-3, abs_tol=1e-6) if before is not None else not math.isfinite(loss)
    )
    if lines[0].get("slice") != fingerprint or not same:
        raise InputError(f"{path} belongs to another landscape; delete it, or choose another file")
    points = {}
    for line in lines[1:]:
        c = tuple(map(float, line["at"]))
        # a loss that is not finite is written as null
        points[c] = LandscapePoint(c, torch.nan if line["loss"] is None else line["loss"], line["accuracy"])
    return points


def _fingerprint(surface: LossSurface, *vectors: Vec, states: Sequence[State] = ()) -> str:
    """Return a hash of what a landscape depends on, but for the loss function."""
    of_samples = _tensors([(part.x, part.y) for part in surface.batch.parts()])
    buffers = [*surface.net.buffers(), *_tensors([dict(state) for state in states])]
    return _digest([*of_samples, *buffers, *(t for vector in vectors for t in vector)])


def _tensors(value: Any) -> list[Tensor | None]:
    """Return the tensors of nested batches; None for anything else, as ``_digest`` takes it."""
    if isinstance(value, Batch):
        return _tensors((value.x, value.y))
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [t for v in value for t in _tensors(v)]
    return [value if isinstance(value, Tensor) else None]


def _digest(tensors: Iterable[Tensor | None]) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        dense = torch.empty(0) if t is None else t.detach() if t.layout == torch.strided else t.detach().to_dense()
        flat = real_view(dense).cpu().reshape(-1)
        digest.update(f"{flat.dtype} {len(flat)}".encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _mixed(states: Sequence[State], share: tuple[float, ...], name: str, like: Tensor) -> Tensor:
    """Return a tensor of the mixture; at a corner that network's own, bit for bit."""
    tensors = [tensor_of(s, name, like) for s in states]
    if 1.0 in share:
        return tensors[share.index(1.0)]
    if not (like.is_floating_point() or like.is_complex()):
        return tensors[0]
    wide = torch.complex128 if like.is_complex() else torch.float64
    return torch.stack([c * t.to(like.device, wide) for c, t in zip(share, tensors, strict=True)]).sum(0)
