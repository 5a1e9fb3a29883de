"""The performance profile of a suite: the share of tasks on which each row is within x of the best method."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from steppe.records.suite import SuiteRecords
from steppe.report import plotting
from steppe.report.style import styles
from steppe.report.suite.league import VIEWS, Standing

_MOST = 0.6  # excess at the right end of the axis


def profile(suite: SuiteRecords, leagues: Mapping[str, Sequence[Standing]], narrow: bool = False) -> Figure | None:
    """Return the figure, one panel per view; None before two rows have results.

    A row's line at x is the share of its tasks with an error or loss at most x above that of the best method.
    Rows whose lines coincide are drawn a little below each other.
    """
    leagues = {view: [s for s in own if s.excess] for view, own in leagues.items()}
    leagues = {view: own for view, own in leagues.items() if len(own) > 1}
    if not leagues:
        return None
    drawing, panels = plotting.new_figure(1, len(leagues), (11, 5.4), narrow=narrow)
    style_of = styles(suite.views["compute"])
    names = dict.fromkeys(s.row for own in leagues.values() for s in own)
    for panel, (view, standings) in zip(panels, leagues.items(), strict=True):
        plotting.style_axes(panel, "Error or loss above the best method's, %", f"{VIEWS[view]}: share of tasks, %")
        ends = [0.0, *sorted({x for s in standings for x in s.excess.values() if 0 < x < _MOST}), _MOST]
        for i, standing in enumerate(standings):
            shares = [100 * (standing.share_within(x) or 0.0) - 0.35 * i for x in ends]
            line = style_of[standing.row].line | {"markevery": (i % max(len(ends), 1), max(1, len(ends) // 5))}
            color = style_of[standing.row].light
            panel.step([100 * x for x in ends], shares, where="post", color=color, **line)
        panel.set_ylim(-0.35 * len(standings) - 2, 103)
        panel.set_yticks(np.arange(0, 101, 25))
    plotting.legend(drawing, style_of, names)
    return drawing
