"""Noise tolerance and its measures against closed forms."""

import math

import pytest
import torch
from scipy.stats import norm
from support.bowl import bowl, curved, signs

from steppe.diagnostics.noise_tolerance import EPSILON, magnitude_aware, max_tolerated_noise, noise_tolerance
from steppe.errors import InputError

W = torch.tensor([0.7, -1.3, 0.4, 2.0], dtype=torch.float64)


def test_a_sign_tolerates_the_noise_that_flips_a_tenth_of_it_of_any_size_if_relative():
    # P(0.3 + sigma u < 0) is a tenth at sigma = 0.3 / 1.28
    assert max_tolerated_noise(signs(0.3, 1), draws=300, steps=9) == pytest.approx(0.3 / -norm.ppf(0.1), rel=0.15)
    assert max_tolerated_noise(signs(0.3, 1), 0.25, draws=300, steps=9) == pytest.approx(
        0.3 / -norm.ppf(0.25), rel=0.15
    )
    assert max_tolerated_noise(signs(50.0, 1), draws=100) == 2.0
    # the sign of a weight of any size flips as often: a tenth at sigma = 1 / 1.28
    for size in (0.5, 30.0):
        result = max_tolerated_noise(signs(size, 1), noise="magnitude", draws=300, steps=9)
        assert result == pytest.approx(1 / -norm.ppf(0.1), rel=0.15)


def test_measures_have_hand_computed_values():
    result = noise_tolerance(bowl(curved(4), W), 0.5, 100, [torch.ones(4, dtype=torch.float64)])
    squared, moved = float((W**2).sum()), float(((W - 1) ** 2).sum())
    assert (result.flatness, result.sigma) == (4.0, 0.5)
    assert result.origin == pytest.approx(squared + math.log(200) + 10)
    assert result.start == pytest.approx(moved + math.log(200) + 10)
    assert noise_tolerance(bowl(curved(4), W), 0.5, 100).start is None
    moved = [W[:3], None, W[3:]]
    mean = float((W**2).mean())
    expected = sum(0.25 * math.log((EPSILON**2 + 1.25 * mean) / (EPSILON**2 + 0.25 * float(w) ** 2)) for w in W)
    assert magnitude_aware(moved, 0.5, 60) == pytest.approx(expected + math.log(120) + 10)
    # for equal moves only the constants and the noise's own part remain
    alike = magnitude_aware([torch.full((8,), 5.0, dtype=torch.float64)], 2.0, 60)
    assert alike == pytest.approx(2 * math.log(5 / 4) + math.log(30) + 10, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_tolerated_noise(signs(1.0), 0.0), "drop is 0.0; give a number between 0 and 1"),
        (lambda: max_tolerated_noise(signs(1.0), draws=0), "draws is 0 and steps is 15"),
        (lambda: max_tolerated_noise(signs(1.0), noise="pink"), "noise is 'pink'; choose isotropic or magnitude"),
        (lambda: magnitude_aware([W], 0.0, 5), "sigma is 0.0; give a number above 0"),
        (lambda: noise_tolerance(signs(1.0), 0.0, 5), "sigma is 0.0; give a number above 0"),
        (lambda: noise_tolerance(signs(1.0), 1.0, 0), "samples is 0"),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
