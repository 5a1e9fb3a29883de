from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.report.statistics import holm, mean_std, paired_difference

accuracies = st.floats(0, 100, allow_nan=False).map(lambda v: round(v, 4))
pairs = st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_mean_and_sample_standard_deviation_of_hand_values() -> None:
    mean, std = mean_std([2.0, 4.0, 9.0])
    assert mean == 5.0
    assert std == pytest.approx(math.sqrt(13))
    assert mean_std([3.0]) == (3.0, None)


def test_no_value_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_std([])


def test_interval_of_three_hand_pairs() -> None:
    # d = 1, 2, 6: m = 3, s = sqrt(7), t(0.975; 2) = 4.302653, half width 4.302653 * sqrt(7 / 3).
    found = paired_difference([3.0, 4.0, 8.0], [2.0, 2.0, 2.0])
    half = 4.302652729911275 * math.sqrt(7 / 3)
    assert (found.mean, found.n) == (3.0, 3)
    assert found.low == pytest.approx(3 - half)
    assert found.high == pytest.approx(3 + half)
    # With 2 degrees of freedom the tail has a closed form: p = 1 - t / sqrt(2 + t^2).
    t = 3 / math.sqrt(7 / 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert not found.separates


def test_interval_at_another_level_is_narrower() -> None:
    wide: Any = paired_difference([3.0, 4.0, 8.0], [2.0, 2.0, 2.0], level=0.95)
    narrow: Any = paired_difference([3.0, 4.0, 8.0], [2.0, 2.0, 2.0], level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([96.0], [95.0])
    assert (found.mean, found.low, found.high, found.n, found.p) == (1.0, None, None, 1, None)
    assert not found.separates


@pytest.mark.parametrize(("a", "b"), [([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]), ([5.0, 5.0], [5.0, 5.0])])
def test_equal_differences_have_no_interval(a: Any, b: Any) -> None:
    found = paired_difference(a, b)
    assert (found.low, found.high, found.p) == (None, None, None)


@pytest.mark.parametrize(("a", "b", "level"), [([1.0], [], 0.95), ([], [], 0.95), ([1.0], [1.0], 1.0)])
def test_impossible_arguments_are_refused(a: Any, b: Any, level: float) -> None:
    with pytest.raises(ValueError, match=r"values|level"):
        paired_difference(a, b, level)


@given(pairs, st.floats(-50, 50).map(lambda v: round(v, 3)))
def test_a_shift_of_both_changes_nothing(values: Any, shift: Any) -> None:
    a, b = zip(*values, strict=True)
    here = paired_difference(a, b)
    there = paired_difference([v + shift for v in a], [v + shift for v in b])
    assert there.mean == pytest.approx(here.mean, abs=1e-9)
    assert (there.low is None) == (here.low is None)
    if here.low is not None:
        assert there.low == pytest.approx(here.low, abs=1e-9)


@given(pairs)
def test_exchanging_the_two_changes_the_sign_only(values: Any) -> None:
    a, b = zip(*values, strict=True)
    one: Any = paired_difference(a, b)
    other: Any = paired_difference(b, a)
    assert one.mean == -other.mean
    assert one.separates == other.separates
    assert one.p == other.p
    if one.low is not None:
        assert (one.low, one.high) == (-other.high, -other.low)


@given(pairs)
def test_p_and_interval_agree(values: Any) -> None:
    a, b = zip(*values, strict=True)
    found = paired_difference(a, b)
    if found.p is not None and abs(found.p - 0.05) > 1e-6:
        assert found.separates == (found.p < 0.05)


def test_holm_of_hand_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_lists)
def test_holm_is_monotone_and_never_below_the_raw_value(values: Any) -> None:
    adjusted = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, adjusted, strict=True))
    ordered = [adjusted[i] for i in sorted(range(len(values)), key=values.__getitem__)]
    assert ordered == sorted(ordered)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, 1.2])


def test_reports_are_read_without_torch() -> None:
    # The package's own __init__ may import torch; what is under test is what these modules add to it.
    code = (
        "import sys, types; package = types.ModuleType('steppe'); package.__path__ = [sys.argv[1]];"
        "sys.modules['steppe'] = package; import steppe.report.comparison.page; assert 'torch' not in sys.modules"
    )
    home = steppe.__file__.rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", code, home], check=True)
