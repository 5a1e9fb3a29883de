"""Reported measures against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from bowl import bowl, curved, signs
from scipy.stats import norm

from steppe.diagnose.complexity import bearable_noise, complexity, gaussian_divergence
from steppe.errors import InputError

W = torch.tensor([0.7, -1.3, 0.4, 2.0], dtype=torch.float64)


def test_the_sign_bears_the_noise_that_turns_a_tenth_of_it():
    # P(0.3 + sigma u < 0) is a tenth at sigma = 0.3 / 1.28
    assert bearable_noise(signs(0.3, 1), draws=1500, steps=9) == pytest.approx(0.3 / -norm.ppf(0.1), rel=0.1)
    assert bearable_noise(signs(0.3, 1), 0.25, draws=1500, steps=9) == pytest.approx(
        0.3 / -norm.ppf(0.25), rel=0.1
    )
    assert bearable_noise(signs(50.0, 1), draws=100) == 2.0


def test_measures_of_hand_values():
    found = complexity(bowl(curved(4), W), 0.5, 100, [torch.ones(4, dtype=torch.float64)])
    squared, moved = float((W**2).sum()), float(((W - 1) ** 2).sum())
    assert (found.flatness, found.sigma) == (4.0, 0.5)
    assert found.origin == pytest.approx(squared + math.log(200) + 10)
    assert found.start == pytest.approx(moved + math.log(200) + 10)
    assert complexity(bowl(curved(4), W), 0.5, 100).start is None


def test_the_divergence_is_that_of_torch():
    parts = [W[:1].reshape(1, 1), None, W[1:]]
    q, p = torch.distributions.Normal(W, 0.3), torch.distributions.Normal(torch.zeros(4).double(), 2.0)
    expected = float(torch.distributions.kl_divergence(q, p).sum())
    assert gaussian_divergence(parts, 0.3, 2.0) == pytest.approx(expected)
    assert gaussian_divergence(parts, 2.0, 2.0) == pytest.approx(float((W**2).sum()) / 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bearable_noise(signs(1.0), 0.0), "drop is 0.0; give a number between 0 and 1"),
        (lambda: bearable_noise(signs(1.0), draws=0), "draws is 0 and steps is 15"),
        (lambda: complexity(signs(1.0), 0.0, 5), "sigma is 0.0; give a number above 0"),
        (lambda: complexity(signs(1.0), 1.0, 0), "samples is 0"),
        (lambda: gaussian_divergence([W], 0.0, 1.0), "deviations are 0.0 and 1.0"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
