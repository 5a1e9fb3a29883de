"""Levels of colour by their rule, and figures in the page's colours and in two widths."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from steppe.report import _html, plotting
from steppe.report.comparison import pareto
from steppe.report.plotting import Levels, levels

nan = float("nan")


def test_levels_have_a_constant_factor_where_the_losses_need_one() -> None:
    # the middle of a plane whose rim has losses without end: 0.33 nats at the network, 1260 at the corner
    x = np.linspace(-1, 1, 11)
    losses = 0.33 * np.exp(8.25 * np.maximum(abs(x[:, None]), abs(x)) ** 2)
    own = levels(losses)
    assert own.log and isinstance(own.norm, LogNorm)
    np.testing.assert_allclose(own.at[1:] / own.at[:-1], (np.quantile(losses, 0.9) / 0.33) ** (1 / 14))
    # the rule before: 15 equal steps, the first of which holds all but the rim
    linear = np.linspace(losses.min(), np.quantile(losses, 0.9), 15)
    assert (losses < linear[1]).mean() > 0.6
    assert (losses < own.at[1]).mean() < 0.15


@pytest.mark.parametrize(
    ("losses", "low", "high", "log"),
    [
        ([1, 2, 3], 1, 2.8, False),  # the 90 % quantile
        ([1, 10, 20], 1, 18, False),  # below 20 times the lowest
        ([1, 10, 1000], 1, 802, True),
        ([0.5, nan, 4, 1e30], 0.5, 0.5e4, True),  # four decades
        ([0.0, 1.0, 10.0], 0.001, 8.2, True),
        ([0.0, 0.001, 0.002], 0, 0.0018, False),  # everything is near 0
        ([-3.0, 100.0, 1e3], -3, 820, False),  # no logarithm
        ([2.5, 2.5, 2.5], 2.5, 5, False),
        ([1e20, 1e20], 1e20, 2e20, False),
        ([0.3, 0.3 + 1e-16], 0.3, 1.3, False),
        ([nan, nan], 0, 1, False),
    ],
)
def test_levels_begin_and_end_by_the_rule(losses: Any, low: float, high: float, log: bool) -> None:
    own = levels(np.array(losses))
    assert (own.at[0], own.at[-1], own.log) == (pytest.approx(low), pytest.approx(high), log)
    assert len(own.at) == 15 and (np.diff(own.at) > 0).all()


@pytest.mark.parametrize("losses", [[0.33, 2, 1260, nan], [0, 0, 0, 0], [nan] * 4, [1, 2, 3, 4], [0, 1, 1e9, 5]])
def test_every_plane_can_be_drawn(losses: Any) -> None:
    plane = np.array(losses, dtype=float).reshape(2, 2)
    own = levels(plane)
    values = plotting.clipped(plane, own)
    assert np.isfinite(values).all() and (values >= own.at[0]).all()
    assert (values[np.isnan(plane)] > own.at[-1]).all()
    figure, (panel,) = plotting.new_figure(1, 1, (3, 3))
    plotting.style_axes(panel, "x", "title")
    contours = plotting.filled_contour(panel, [0, 1], [0, 1], plane, own, cmap=plotting.SHADES)
    plotting.color_bar(figure, contours, panel, "Loss")
    # without a fixed white or grey: the page is light or dark
    text = plotting.inline(figure)
    assert not re.search(r": #", text)
    ET.fromstring(text.replace("xlink:", ""))


def test_shades_go_from_the_pages_ground_to_its_ink() -> None:
    figure, (panel,) = plotting.new_figure(1, 1, (3, 3))
    own = Levels(np.linspace(0, 1, 15), log=False)
    plotting.filled_contour(panel, [0, 1], [0, 1], np.array([[0, 0.5], [0.7, 2]]), own, cmap=plotting.SHADES)
    mixed = re.findall(r"fill: color-mix\(in srgb, var\(--2b2f36, #2b2f36\) ([\d.]+)%", plotting.inline(figure))
    shares = [float(share) for share in mixed]
    assert len(shares) > 10 and shares == sorted(shares)
    assert shares[0] < 5 and shares[-1] == 60


def test_a_line_of_one_point_can_be_seen() -> None:
    _, (panel,) = plotting.new_figure(1, 1, (3, 3))
    plain = plotting.Style("#2b2f36", "#e9ebee", (), "", 2.4)
    plotting.band(panel, [1], np.ones((3, 1)), plain, 0)
    assert panel.lines[0].get_marker() == "o"
    plotting.band(panel, [1, 2], np.ones((3, 2)), plain, 0)
    assert panel.lines[1].get_marker() in (None, "None", "")


def test_a_narrow_figure_has_its_panels_below_each_other_and_names_of_its_own(full: Any) -> None:
    from steppe.records import load

    comparison = load(full.path)
    wide, narrow = (pareto.figure(comparison, narrow) for narrow in (False, True))
    assert wide is not None and narrow is not None
    assert narrow.get_figwidth() == plotting.NARROW
    # a key in the place of labels
    assert not [text for panel in narrow.axes for text in panel.texts]
    assert [t.get_text() for t in narrow.legends[0].get_texts()] == list(comparison.methods)
    both = _html.figure(wide, narrow)
    names = re.findall(r'<(?:clipPath|path) id="([^"]+)"', both)
    assert len(names) == len(set(names))
    _, panels = plotting.new_figure(2, 2, (11, 6), narrow=True)
    assert {panel.get_subplotspec().get_geometry()[1] for panel in panels} == {1}
