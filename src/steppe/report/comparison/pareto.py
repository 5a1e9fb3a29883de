"""Accuracy against cost: where points and their labels stand so that none hides another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matplotlib.ticker import MaxNLocator

from steppe.records import Comparison
from steppe.report.comparison.summary import ResultRow, Spread, chosen, rows

CostAxis = Literal["gradients", "seconds"]
TITLES = {"gradients": "Gradient evaluations of a run", "seconds": "Training seconds of a run"}


@dataclass(frozen=True)
class Point:
    """One method: its cost, test accuracy (percent), and where it is drawn, in the axes' units."""

    method: str
    cost: float
    accuracy: Spread
    x: float
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Layout:
    """The points, those on the Pareto front by rising cost, the limits of both axes and their ticks."""

    points: list[Point]
    front: list[Point]
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: list[float]
    y_ticks: list[float]


def layout(comparison: Comparison, group: tuple[str, str], cost: CostAxis, gap: float = 0.055) -> Layout | None:
    """Place the methods of one data set and network; None if no run has finished.

    Methods of equal cost stand side by side; labels stand to the right of theirs, at least ``gap`` of the
    height apart. Accuracy is after the last epoch, with the sample standard deviation over seeds.
    """
    table = [r for r in rows(comparison) if (r.dataset, r.model) == group and r.last is not None]
    costs = {r.method: _cost(comparison, r, cost) for r in table}
    known = [(r.method, c, r.last) for r in table if (c := costs[r.method]) is not None and r.last]
    if not known:
        return None
    lowest = min(s.mean - (s.std or 0.0) for _, _, s in known)
    highest = max(s.mean + (s.std or 0.0) for _, _, s in known)
    margin = 0.08 * (highest - lowest) or 1.0
    y = (lowest - margin, highest + margin)
    costs_only = [c for _, c, _ in known]
    span = max(costs_only) - min(costs_only) or 0.5 * max(costs_only) or 1.0
    x = (min(costs_only) - 0.08 * span, max(costs_only) + 0.4 * span)
    points: list[Point] = []
    for column in _columns(known, 0.1 * span):
        points += _placed(column, y, gap, 0.014 * span)
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    x_ticks = _inside(ticks, (x[0], max(costs_only) + 0.15 * span))
    return Layout(points, front(points), x, y, x_ticks, _inside(ticks, y))


def front(points: list[Point]) -> list[Point]:
    """Return the points that no other dominates, by rising cost: the Pareto front of mean accuracy and mean cost.

    A point is dominated if another costs at most as much and is at least as accurate, and differs from it.
    """

    def dominates(a: Point, b: Point) -> bool:
        (cost, mean), (other_cost, other_mean) = ((p.cost, p.accuracy.mean) for p in (a, b))
        return cost <= other_cost and mean >= other_mean and (cost, mean) != (other_cost, other_mean)

    return sorted((p for p in points if not any(dominates(q, p) for q in points)), key=lambda p: p.cost)


def stairs(on_front: list[Point]) -> list[tuple[float, float]]:
    """Return the corners of the line that the front draws: flat until something costlier is more accurate."""
    corners: list[tuple[float, float]] = []
    for point in on_front:
        if corners:
            corners.append((point.x, corners[-1][1]))
        corners.append((point.x, point.accuracy.mean))
    return corners


def _cost(comparison: Comparison, row: ResultRow, cost: CostAxis) -> float | None:
    if cost == "seconds":
        return row.seconds
    records = [r for r in chosen(comparison, (row.dataset, row.model), row.method) if r.status == "ok"]
    ends = [r.metrics[-1].get("gradients") for r in records if r.metrics]
    known = [e for e in ends if e is not None]
    return sum(known) / len(known) if known else None


def _columns(known: list[tuple[str, float, Spread]], near: float) -> list[list[tuple[str, float, Spread]]]:
    columns: list[list[tuple[str, float, Spread]]] = []
    for item in sorted(known, key=lambda k: k[1]):
        if columns and item[1] - columns[-1][0][1] <= near:
            columns[-1].append(item)
        else:
            columns.append([item])
    return columns


def _placed(
    column: list[tuple[str, float, Spread]], y: tuple[float, float], gap: float, step: float
) -> list[Point]:
    xs: dict[str, float] = {}
    for equal in _columns(column, step):
        middle = sum(c for _, c, _ in equal) / len(equal)
        for i, (method, _, _) in enumerate(sorted(equal, key=lambda k: k[2].mean)):
            xs[method] = middle + (i - (len(equal) - 1) / 2) * step
    column = sorted(column, key=lambda k: k[2].mean)
    heights = _apart([s.mean for _, _, s in column], gap * (y[1] - y[0]), y)
    label_x = max(xs.values()) + 1.5 * step
    return [
        Point(method, cost, accuracy, xs[method], label_x, height)
        for (method, cost, accuracy), height in zip(column, heights, strict=True)
    ]


def _apart(heights: list[float], gap: float, limits: tuple[float, float]) -> list[float]:
    """Move rising heights as little as keeps them ``gap`` apart: overlapping ones share their centre."""
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1:
            (low, m), (high, n) = blocks[-2:]
            if high - low >= gap * (m + n) / 2:
                break
            blocks[-2:] = [[(m * low + n * high) / (m + n), m + n]]
    placed: list[float] = []
    for centre, count in blocks:
        placed += [centre + (i - (count - 1) / 2) * gap for i in range(int(count))]
    over = max(0.0, placed[-1] - limits[1])
    under = max(0.0, limits[0] - placed[0] + over)
    return [p - over + (under if not over else 0.0) for p in placed]


def _inside(ticks: MaxNLocator, limits: tuple[float, float]) -> list[float]:
    return [float(t) for t in ticks.tick_values(*limits) if limits[0] <= t <= limits[1]]
