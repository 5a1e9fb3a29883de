"""The Pareto front against brute force, and the places of points and labels."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from steppe.records import load
from steppe.report.comparison.pareto import Point, figure, front, place, stairs
from steppe.report.comparison.summary import Spread

GROUP = ("digits", "simple-cnn")
pairs = st.tuples(st.integers(0, 5), st.integers(0, 5))


def point(name: str, cost: float, accuracy: float) -> Point:
    return Point(name, cost, Spread(accuracy, None, 1), cost, cost, accuracy)


@given(st.lists(pairs, min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(values: Any) -> None:
    points = [point(str(i), c, a) for i, (c, a) in enumerate(values)]
    names = {p.method for p in front(points)}
    for i, (c, a) in enumerate(values):
        dominated = any((d < c and b >= a) or (d <= c and b > a) for d, b in values)
        assert (str(i) in names) == (not dominated)
    costs = [p.cost for p in front(points)]
    assert costs == sorted(costs)


def test_the_front_is_drawn_in_steps(full: Any) -> None:
    points = [point("plain", 1, 90), point("sam", 2, 92), point("gc", 1, 89), point("slow", 3, 91)]
    assert stairs(front(points)) == [(1, 90), (2, 90), (2, 92)]
    layout: Any = place(load(full.path), GROUP, "gradients")
    assert max(layout.points, key=lambda p: p.value.mean) in layout.front


def test_labels_do_not_overlap(full: Any) -> None:
    layout: Any = place(load(full.path), GROUP, "gradients", gap=0.05)
    height = layout.y[1] - layout.y[0]
    for column in {p.label_x for p in layout.points}:
        ys = sorted(p.label_y for p in layout.points if p.label_x == column)
        assert all(b - a >= 0.05 * height - 1e-9 for a, b in pairwise(ys))
        assert layout.y[0] <= ys[0]
        assert ys[-1] <= layout.y[1]


def test_the_figure_has_a_panel_per_cost_with_every_method_where_it_is(full: Any) -> None:
    panels = figure(load(full.path)).axes  # type: ignore[union-attr]
    assert [p.get_xlabel() for p in panels] == ["Gradient evaluations of a run", "Training seconds of a run"]
    for panel in panels:
        assert {t.get_text().strip() for t in panel.texts} == set(full.compare["methods"])
    layout: Any = place(load(full.path), GROUP, "gradients")
    heights = {line.get_ydata()[0] for line in panels[0].lines if len(line.get_ydata()) == 1}
    assert heights == {p.value.mean for p in layout.points}


def test_without_a_finished_run_there_is_no_figure(folder: Any) -> None:
    folder.method("plain")
    folder.run("plain", 0, None, "unfinished")
    assert figure(load(folder.write())) is None
