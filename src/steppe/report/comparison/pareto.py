"""The metric against cost: the figure, and the Pareto front in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steppe.records import Comparison
from steppe.report import plotting
from steppe.report.comparison.summary import ResultRow, Spread, groups, metric_of, rows, runs_of, spread
from steppe.report.metric_text import ACCURACY_TEXT, MetricText
from steppe.report.style import Style, styles

CostAxis = Literal["gradients", "seconds"]
COSTS = {"gradients": "gradient evaluations", "seconds": "training seconds"}
# The smallest distance between two labels, in inches: a line of 9 points.
_LINE = 0.18


@dataclass(frozen=True)
class Point:
    """One method: its cost, its test value (accuracy: in percent), and where it and its label are drawn."""

    method: str
    cost: float
    value: Spread
    x: float
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Layout:
    """The points, the Pareto front among them by rising cost, and the limits of both axes."""

    points: list[Point]
    front: list[Point]
    x: tuple[float, float]
    y: tuple[float, float]


def figure(comparison: Comparison, narrow: bool = False) -> Figure | None:
    """Return the metric on the test data after the last epoch against the cost; None before a run has finished.

    One panel per data set, network and cost. The costs are gradient evaluations (backward passes) and training
    seconds, means over seeds. Bars are the sample standard deviation over seeds. Methods of equal cost are drawn
    next to each other. The stepped line is the Pareto front (see ``front``). A ``narrow`` figure, for a telephone,
    has a key in the place of labels.
    """
    height = max(4.4, 0.8 + _LINE * len(comparison.methods))
    space: tuple[float, float] = (0.035, 0.08) if narrow else (0.014, 0.3)
    layouts = [
        (group, cost, layout)
        for group in groups(comparison)
        for cost in get_args(CostAxis)
        if (layout := place(comparison, group, cost, _LINE / (height - 0.8), *space))
    ]
    if not layouts:
        return None
    drawing, panels = plotting.new_figure(len(layouts), 1, (11, height * len(layouts)), narrow=narrow)
    style_of = styles(comparison)
    for panel, (group, cost, layout) in zip(panels, layouts, strict=True):
        where = f"\n{', '.join(group)}" if len(groups(comparison)) > 1 else ""
        title = f"{COSTS[cost].capitalize()} of a run"
        text = metric_of(comparison, group[0])
        plotting.style_axes(panel, title, text.caption(f"Test {text.name} after the last epoch") + where)
        _draw(panel, layout, style_of, labelled=not narrow)
    if narrow:
        having = {point.method for _, _, layout in layouts for point in layout.points}
        plotting.legend(drawing, style_of, (m for m in comparison.methods if m in having), "point")
    return drawing


def _draw(panel: Axes, layout: Layout, style_of: dict[str, Style], labelled: bool) -> None:
    panel.plot(*zip(*stairs(layout.front), strict=True), color=plotting.FAINT, linewidth=3, zorder=1)
    for point in layout.points:
        style, mean = style_of[point.method], point.value.mean
        bar: dict[str, Any] = {"yerr": point.value.std or 0.0, "elinewidth": 1.3, "markersize": 6}
        panel.errorbar(point.x, mean, fmt=style.marker or "o", color=style.light, **bar)
        if not labelled:
            continue
        leader = [point.x, point.label_x], [mean, point.label_y]
        panel.plot(*leader, color=style.light, linewidth=0.5, alpha=0.6)
        weight = "bold" if point in layout.front else "normal"
        name = panel.text(point.label_x, point.label_y, f" {plotting.label(point.method)}", va="center")
        name.set(color=style.light, fontsize=9, fontweight=weight, parse_math=False)
    panel.set(xlim=layout.x, ylim=layout.y)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(6 if labelled else 5, steps=[1, 2, 2.5, 5, 10]))


def place(
    comparison: Comparison,
    group: tuple[str, str],
    cost: CostAxis,
    gap: float = 0.05,
    step: float = 0.014,
    room: float = 0.3,
) -> Layout | None:
    """Place the methods of one data set and network; None if no run has finished.

    Labels are to the right of their points, at least ``gap`` of the panel's height apart. Points of equal cost are
    ``step`` of the range of costs apart, and ``room`` of it is left for the last labels.
    """
    table = [r for r in rows(comparison) if (r.dataset, r.model) == group]
    text = metric_of(comparison, group[0])
    items = [
        (r.method, value, r.last) for r in table if r.last and (value := _cost(comparison, r, cost)) is not None
    ]
    if not items:
        return None
    lowest = min(s.mean - (s.std or 0.0) for _, _, s in items)
    highest = max(s.mean + (s.std or 0.0) for _, _, s in items)
    margin = 0.08 * (highest - lowest) or (1.0 if text.metric.percent else 0.1 * abs(highest) or 1.0)
    y = (lowest - margin, highest + margin)
    costs = [c for _, c, _ in items]
    span = max(costs) - min(costs) or 0.5 * max(costs) or 1.0
    columns = _columns(items, 0.1 * span)
    points = [point for column in columns for point in _placed(column, y, gap, step * span)]
    x = (min(costs) - 0.08 * span, max(costs) + room * span)
    return Layout(points, front(points, text), x, y)


def front(points: Sequence[Point], text: MetricText = ACCURACY_TEXT) -> list[Point]:
    """Return the Pareto front of mean value and mean cost: the points that no other dominates, by rising cost.

    A point is dominated if another costs at most as much and is at least as good, and differs from it.
    """

    def dominates(a: Point, b: Point) -> bool:
        (cost, mean), (other_cost, other_mean) = ((p.cost, text.gain(p.value.mean)) for p in (a, b))
        return cost <= other_cost and mean >= other_mean and (cost, mean) != (other_cost, other_mean)

    return sorted((p for p in points if not any(dominates(q, p) for q in points)), key=lambda p: p.cost)


def stairs(on_front: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the corners of the front's line: flat until a costlier method is better."""
    corners: list[tuple[float, float]] = []
    for point in on_front:
        corners += [(point.x, corners[-1][1])] if corners else []
        corners += [(point.x, point.value.mean)]
    return corners


def _cost(comparison: Comparison, row: ResultRow, cost: CostAxis) -> float | None:
    if cost == "seconds":
        return row.seconds
    runs = runs_of(comparison, (row.dataset, row.model), row.method)
    total = spread(r.metrics[-1].get("gradients") for r in runs if r.status == "ok" and r.metrics)
    return total.mean if total else None


def _columns(items: list[tuple[str, float, Spread]], near: float) -> list[list[tuple[str, float, Spread]]]:
    """Return the methods in columns, each no wider than ``near``."""
    columns: list[list[tuple[str, float, Spread]]] = []
    for item in sorted(items, key=lambda item: item[1]):
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
        for i, (method, _, _) in enumerate(sorted(equal, key=lambda item: item[2].mean)):
            xs[method] = middle + (i - (len(equal) - 1) / 2) * step
    column = sorted(column, key=lambda item: item[2].mean)
    heights = _spaced([s.mean for _, _, s in column], gap * (y[1] - y[0]), y)
    label_x = max(xs.values()) + 1.5 * step
    return [
        Point(method, cost, value, xs[method], label_x, height)
        for (method, cost, value), height in zip(column, heights, strict=True)
    ]


def _spaced(heights: list[float], gap: float, limits: tuple[float, float]) -> list[float]:
    """Move rising heights as little as possible so that they are ``gap`` apart and within the limits."""
    # Heights that would overlap form a block around their common centre.
    blocks: list[tuple[float, int]] = []
    for height in heights:
        blocks.append((height, 1))
        while len(blocks) > 1:
            (low, m), (high, n) = blocks[-2:]
            if high - low >= gap * (m + n) / 2:
                break
            blocks[-2:] = [((m * low + n * high) / (m + n), m + n)]
    placed = [centre + (i - (n - 1) / 2) * gap for centre, n in blocks for i in range(n)]
    over, under = placed[-1] - limits[1], limits[0] - placed[0]
    shift = -over if over > 0 else max(0.0, under)
    return [p + shift for p in placed]
