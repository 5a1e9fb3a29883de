import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.report.statistics import holm, mean_std, paired_difference

accuracies = st.floats(0, 100, allow_nan=False).map(lambda v: round(v, 4))
pairs = st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_mean_and_sample_standard_deviation_of_hand_values() -> None:
    mean, std = mean_std([2.0, 4.0, 9.0])
    assert mean == 5.0
    assert std == pytest.approx(math.sqrt(13))
    assert mean_std([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="at least one"):
        mean_std([])


def test_interval_of_three_hand_pairs() -> None:
    # d = 1, 2, 6: m = 3, s = sqrt(7), t(0.975; 2) = 4.302653, half width 4.302653 * sqrt(7 / 3).
    a, b = [3.0, 4.0, 8.0], [2.0, 2.0, 2.0]
    difference: Any = paired_difference(a, b)
    half = 4.302652729911275 * math.sqrt(7 / 3)
    assert (difference.mean, difference.n) == (3.0, 3)
    assert difference.low == pytest.approx(3 - half)
    assert difference.high == pytest.approx(3 + half)
    # With 2 degrees of freedom the tail has a closed form: p = 1 - t / sqrt(2 + t^2).
    t = 3 / math.sqrt(7 / 3)
    assert difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert not difference.significant
    narrow: Any = paired_difference(a, b, level=0.5)
    assert difference.low < narrow.low < narrow.high < difference.high
    for values in (([1.0], [], 0.95), ([], [], 0.95), ([1.0], [1.0], 1.0)):
        with pytest.raises(ValueError, match=r"values|level"):
            paired_difference(*values)


@pytest.mark.parametrize(
    ("a", "b"), [([96.0], [95.0]), ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]), ([5.0, 5.0], [5.0, 5.0])]
)
def test_one_pair_and_equal_differences_have_no_interval(a: Any, b: Any) -> None:
    difference = paired_difference(a, b)
    assert (difference.low, difference.high, difference.p, difference.n) == (None, None, None, len(a))
    assert difference.mean == pytest.approx(a[0] - b[0])
    assert not difference.significant


@given(pairs, st.floats(-50, 50).map(lambda v: round(v, 3)))
def test_interval_and_p_agree_a_shift_changes_nothing_and_an_exchange_the_sign(values: Any, shift: Any) -> None:
    a, b = zip(*values, strict=True)
    difference: Any = paired_difference(a, b)
    shifted: Any = paired_difference([v + shift for v in a], [v + shift for v in b])
    assert shifted.mean == pytest.approx(difference.mean, abs=1e-9)
    assert (shifted.low is None) == (difference.low is None)
    exchanged: Any = paired_difference(b, a)
    assert (exchanged.mean, exchanged.p) == (-difference.mean, difference.p)
    assert exchanged.significant == difference.significant
    if difference.low is not None:
        assert shifted.low == pytest.approx(difference.low, abs=1e-9)
        assert (difference.low, difference.high) == (-exchanged.high, -exchanged.low)
        assert abs(difference.p - 0.05) < 1e-6 or difference.significant == (difference.p < 0.05)


def test_holm_of_hand_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, 1.2])


@given(p_lists)
def test_holm_is_monotone_and_never_below_the_raw_value(values: Any) -> None:
    adjusted = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, adjusted, strict=True))
    ordered = [adjusted[i] for i in sorted(range(len(values)), key=values.__getitem__)]
    assert ordered == sorted(ordered)
