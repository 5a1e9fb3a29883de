"""Reported measures against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from support.bowl import bowl, curved, signs

from steppe.diagnostics.noise_tolerance import (
    EPSILON,
    gaussian_divergence,
    magnitude_aware,
    max_tolerated_noise,
    noise_tolerance,
)
from steppe.errors import InputError

W = torch.tensor([0.7, -1.3, 0.4, 2.0], dtype=torch.float64)


def test_the_sign_bears_the_noise_that_turns_a_tenth_of_it():
    # P(0.3 + sigma u < 0) is a tenth at sigma = 0.3 / 1.28
    assert max_tolerated_noise(signs(0.3, 1), draws=1500, steps=9) == pytest.approx(0.3 / -norm.ppf(0.1), rel=0.1)
    assert max_tolerated_noise(signs(0.3, 1), 0.25, draws=1500, steps=9) == pytest.approx(
        0.3 / -norm.ppf(0.25), rel=0.1
    )
    assert max_tolerated_noise(signs(50.0, 1), draws=100) == 2.0


def test_measures_of_hand_values():
    found = noise_tolerance(bowl(curved(4), W), 0.5, 100, [torch.ones(4, dtype=torch.float64)])
    squared, moved = float((W**2).sum()), float(((W - 1) ** 2).sum())
    assert (found.flatness, found.sigma) == (4.0, 0.5)
    assert found.origin == pytest.approx(squared + math.log(200) + 10)
    assert found.start == pytest.approx(moved + math.log(200) + 10)
    assert noise_tolerance(bowl(curved(4), W), 0.5, 100).start is None


def test_noise_in_proportion_to_the_weights_is_borne_in_proportion():
    # the sign of a weight of any size turns as often: a tenth where sigma = 1 / 1.28
    for size in (0.5, 30.0):
        found = max_tolerated_noise(signs(size, 1), noise="magnitude", draws=1500, steps=9)
        assert found == pytest.approx(1 / -norm.ppf(0.1), rel=0.1)


def test_the_magnitude_aware_measure_of_hand_values():
    moved = [W[:3], None, W[3:]]
    mean = float((W**2).mean())
    expected = sum(0.25 * math.log((EPSILON**2 + 1.25 * mean) / (EPSILON**2 + 0.25 * float(w) ** 2)) for w in W)
    assert magnitude_aware(moved, 0.5, 60) == pytest.approx(expected + math.log(120) + 10)
    # weights that moved alike leave the constants and what is due to the noise itself
    alike = magnitude_aware([torch.full((8,), 5.0, dtype=torch.float64)], 2.0, 60)
    assert alike == pytest.approx(2 * math.log(5 / 4) + math.log(30) + 10, rel=1e-6)


def test_the_divergence_is_that_of_torch():
    parts = [W[:1].reshape(1, 1), None, W[1:]]
    q, p = torch.distributions.Normal(W, 0.3), torch.distributions.Normal(torch.zeros(4).double(), 2.0)
    expected = float(torch.distributions.kl_divergence(q, p).sum())
    assert gaussian_divergence(parts, 0.3, 2.0) == pytest.approx(expected)
    assert gaussian_divergence(parts, 2.0, 2.0) == pytest.approx(float((W**2).sum()) / 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_tolerated_noise(signs(1.0), 0.0), "drop is 0.0; give a number between 0 and 1"),
        (lambda: max_tolerated_noise(signs(1.0), draws=0), "draws is 0 and steps is 15"),
        (lambda: max_tolerated_noise(signs(1.0), noise="pink"), "noise is 'pink'; choose isotropic or magnitude"),
        (lambda: magnitude_aware([W], 0.0, 5), "sigma is 0.0; give a number above 0"),
        (lambda: noise_tolerance(signs(1.0), 0.0, 5), "sigma is 0.0; give a number above 0"),
        (lambda: noise_tolerance(signs(1.0), 1.0, 0), "samples is 0"),
        (lambda: gaussian_divergence([W], 0.0, 1.0), "deviations are 0.0 and 1.0"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
