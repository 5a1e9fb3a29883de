"""Statistics of repeated runs: means, paired differences with intervals, adjusted p-values. Needs no torch."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its confidence interval.

    Attributes:
        mean: Mean difference, in the unit of the values.
        low, high: Ends of the confidence interval; None where there is none.
        n: Number of pairs.
        p: Two-sided p-value of "the mean difference is 0"; None where there is no interval.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None

    @property
    def significant(self) -> bool:
        """Return whether there is an interval and it excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation; the latter is None for one value.

    ``m = sum(x) / n`` and ``s = sqrt(sum((x - m)^2) / (n - 1))``, both in the unit of the values.
    Source: the unbiased variance estimate (Bessel's correction), e.g. Casella and Berger, Statistical
    Inference, 2nd ed., section 5.2.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("no values: a mean needs at least one")
    return fmean(values), stdev(values) if len(values) > 1 else None


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Difference:
    """Return the mean of ``a - b`` over pairs, with Student's t interval.

    With ``d = a - b``, mean ``m`` and sample standard deviation ``s`` of ``n`` pairs, the interval is
    ``m +- t(1 - (1 - level) / 2; n - 1) * s / sqrt(n)`` and the p-value that of ``t = m * sqrt(n) / s``.
    Pairing by seed removes what both runs share (initial weights, order of samples). The interval assumes
    differences that are roughly normal.
    Source: Student, The probable error of a mean, Biometrika 6 (1908); Casella and Berger, Statistical
    Inference, 2nd ed., section 8.2.

    One pair has no interval. Neither have pairs that all differ by the same amount: t is undefined at
    ``s = 0``, and an interval of width 0 would claim certainty from a handful of runs.

    Raises:
        ValueError: The sequences are empty or not of one length, or ``level`` is not between 0 and 1.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: pairs need as many of each")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a number between 0 and 1")
    pairs = [x - y for x, y in zip(a, b, strict=True)]
    mean, std = mean_std(pairs)
    n = len(pairs)
    # Equal differences of decimal fractions differ in their last bits; that is rounding, not spread.
    rounding = 16 * sys.float_info.epsilon * max(map(abs, (*a, *b)))
    if std is None or std <= rounding:
        return Difference(mean, None, None, n, None)
    error = std / math.sqrt(n)
    # scipy.stats.t gives the same numbers, but importing it takes a second.
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, n, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for several comparisons, in the same order.

    With ``p(1) <= ... <= p(m)``, the adjusted ``p(i)`` is ``max over j <= i of min(1, (m - j + 1) p(j))``.
    It bounds the chance of one or more false claims among all ``m``, whatever their dependence.
    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
    Statistics 6 (1979).

    Raises:
        ValueError: A value is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("a p-value lies between 0 and 1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
