"""Accuracy against cost as the page draws it: coordinates of one SVG, and the Pareto front in words."""

from __future__ import annotations

from typing import Any

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison import pareto
from steppe.report.comparison.conclusions import on_front
from steppe.report.formatting import plain_text
from steppe.report.style import outline, styles

LEFT, RIGHT, TOP, WIDTH = 46, 8, 28, 960
_COSTS = {"gradients": "gradient evaluations", "seconds": "training seconds"}


def figure(comparison: Comparison, name: tuple[str, str], kind: pareto.CostAxis) -> dict[str, Any] | None:
    """Return the figure of one data set and network; None if no run has finished.

    It is taller where many methods of like cost have their names below each other.
    """
    height = 374
    placed = pareto.layout(comparison, name, kind, gap=19 / height)
    if placed is None:
        return None
    columns = [p.label_x for p in placed.points]
    crowd = max(columns.count(x) for x in columns)
    if crowd * 19 > height:
        height = crowd * 19
        placed = pareto.layout(comparison, name, kind, gap=19 / height) or placed
    order, look = list(comparison.methods), styles(comparison)
    floor = TOP + height

    def x(v: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (v - placed.x[0]) / (placed.x[1] - placed.x[0]), 1)

    def y(v: float) -> float:
        return round(floor - height * (v - placed.y[0]) / (placed.y[1] - placed.y[0]), 1)

    points = []
    for p in placed.points:
        std = p.accuracy.std
        points.append(
            {
                "style": order.index(p.method),
                "name": plain_text(p.method),
                "mark": outline(look[p.method].marker or "o"),
                "about": f"{plain_text(p.method)}: {formatting.spread(p.accuracy, 2)} %, {p.cost:,.0f} {_COSTS[kind]}",
                "x": x(p.x),
                "y": y(p.accuracy.mean),
                "low": y(p.accuracy.mean - std) if std else None,
                "high": y(p.accuracy.mean + std) if std else None,
                "label_x": x(p.label_x),
                "label_y": y(p.label_y),
                "front": p in placed.front,
            }
        )
    return {
        "kind": kind,
        "title": pareto.TITLES[kind],
        "label": f"Test accuracy against {pareto.TITLES[kind].lower()}, {plain_text(', '.join(name))}",
        "floor": floor,
        "points": points,
        "front": "L".join(f"{x(a)} {y(b)}" for a, b in pareto.stairs(placed.front)),
        "said": on_front([p.method for p in placed.front], len(placed.points), _COSTS[kind]),
        "x_ticks": [{"at": x(t), "text": f"{t:,g}"} for t in placed.x_ticks],
        "y_ticks": [{"at": y(t), "text": f"{t:g}"} for t in placed.y_ticks],
    }
