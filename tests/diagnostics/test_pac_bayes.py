"""Bounds against hand-computed values, their textbook order, and an error that has a closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from support.bowl import Sign, signs
from support.small import small_batch, small_net

from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.pac_bayes import (
    bernoulli_kl,
    bernoulli_kl_inverse,
    bounds,
    catoni,
    gibbs_error,
    mcallester,
    seeger,
)
from steppe.errors import InputError

rates = st.floats(0, 1)
budgets = st.floats(0, 20)


def test_the_divergence_and_its_inverse_have_hand_computed_values():
    assert bernoulli_kl(0.5, 0.25) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert bernoulli_kl(0.0, 0.3) == pytest.approx(-math.log(0.7))
    assert bernoulli_kl(1.0, 0.3) == pytest.approx(-math.log(0.3))
    assert bernoulli_kl(0.3, 0.0) == bernoulli_kl(0.3, 1.0) == math.inf
    assert bernoulli_kl(0.0, 0.0) == bernoulli_kl(1.0, 1.0) == 0.0
    assert bernoulli_kl_inverse(0.0, 0.5) == pytest.approx(1 - math.exp(-0.5))
    assert bernoulli_kl_inverse(0.25, bernoulli_kl(0.25, 0.75)) == pytest.approx(0.75)
    assert bernoulli_kl_inverse(1.0, 0.1) == 1.0
    assert bernoulli_kl_inverse(0.2, math.inf) == 1.0


@given(rates, budgets)
def test_the_inverse_is_the_largest_rate_within_the_budget(q, budget):
    p = bernoulli_kl_inverse(q, budget)
    assert q <= p <= 1
    if p < 1:
        # the divergence is steep near 1, so the tolerance is on the rate
        assert bernoulli_kl(q, max(q, p - 1e-11)) <= budget + 1e-15
        assert bernoulli_kl(q, min(1.0, p + 1e-11)) >= budget - 1e-15


def test_bounds_have_hand_computed_values():
    # the reference's example: |w - w0|^2 = 1000, sigma 0.1, 50,000 samples
    divergence = 1000 / (2 * 0.1**2)
    assert mcallester(0.0, divergence, 50000, 0.05) == pytest.approx(
        math.sqrt((50000 + math.log(40 * math.sqrt(50000))) / 1e5)
    )
    assert mcallester(0.0, 4 * divergence, 50000, 0.05) > 1
    budget = (100 + math.log(40 * math.sqrt(1000))) / 1000
    assert seeger(0.0, 100, 1000, 0.05) == pytest.approx(1 - math.exp(-budget))
    # one constant, C = ln 2: 1 - e^-C is 1/2
    expected = 2 * (1 - math.exp(-math.log(2) * 0.1 - (100 + math.log(20)) / 1000))
    assert catoni(0.1, 100, 1000, 0.05, [math.log(2)]) == pytest.approx(expected)
    alone = catoni(0.1, 50, 1000, 0.05, [1.0])
    two = catoni(0.1, 50, 1000, 0.05, [1.0, 1e-9])
    assert two == pytest.approx(catoni(0.1, 50, 1000, 0.025, [1.0]))
    assert two > alone


@given(rates, st.floats(0, 1e4), st.integers(50, 100000), st.floats(0.001, 0.5))
def test_seeger_is_never_above_mcallester_and_all_are_above_the_training_error(error, divergence, n, delta):
    loose, tight = (f(error, divergence, n, delta) for f in (mcallester, seeger))
    assert tight <= loose + 1e-9
    assert tight >= error
    assert catoni(error, divergence, n, delta) >= error


def test_the_error_of_sampled_networks_has_its_closed_form():
    result = gibbs_error(signs(0.3), 0.5, draws=4000)
    expected = norm.cdf(-0.3 / 0.5)
    assert abs(result - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert gibbs_error(signs(0.3), 0.0, draws=2) == 0.0
    assert gibbs_error(signs(0.3, wrong=100), 0.0, draws=2) == pytest.approx(0.1)


def test_bounds_are_the_formulas_at_the_best_of_the_grid_and_may_be_vacuous():
    surface, sigmas, delta = signs(1.0, 2000), (0.01, 0.1, 10.0), 0.06
    each = delta / 3
    result = {b.kind: b for b in bounds(surface, sigmas=sigmas, delta=delta, draws=50)}
    for kind, formula in (("mcallester", mcallester), ("seeger", seeger), ("catoni", catoni)):
        values = {}
        for sigma in sigmas:
            upper = bernoulli_kl_inverse(gibbs_error(surface, sigma, 50), math.log(2 / (0.1 * each)) / 50)
            values[sigma] = formula(upper, 1 / (2 * sigma**2), 2000, 0.9 * each)
        assert result[kind].sigma == min(values, key=values.__getitem__)
        assert result[kind].value == pytest.approx(min(values.values()))
        assert not result[kind].vacuous
        assert "error at most" in str(result[kind]) and "94%" in str(result[kind])
    assert result["seeger"].divergence == pytest.approx(1 / (2 * 0.1**2))
    # with a prior at the weights themselves only the logarithms remain
    at_prior = {b.kind: b for b in bounds(surface, [torch.ones(1)], sigmas=sigmas, delta=delta, draws=50)}
    assert at_prior["seeger"].divergence == 0.0
    assert at_prior["seeger"].value < result["seeger"].value
    result = bounds(LossSurface(small_net(), [small_batch()]), draws=2)
    assert {b.kind for b in result} == {"mcallester", "seeger", "catoni"}
    assert all(b.vacuous and "vacuous" in str(b) and "at most" not in str(b) for b in result)


def test_a_bound_holds_for_the_true_error():
    """500 samples whose labels are wrong with probability 0.2: the true error of the right sign is 0.2."""
    failed = 0
    for trial in range(40):
        g = torch.Generator().manual_seed(trial)
        wrong = int((torch.rand(500, generator=g) < 0.2).sum())
        result = bounds(signs(5.0, 500, wrong), sigmas=(0.5, 1.0), delta=0.2, draws=20)
        failed += any(b.value < 0.2 for b in result)
    assert failed <= 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds(signs(1.0), delta=1.0), "delta is 1.0; give a number between 0 and 1"),
        (lambda: bounds(signs(1.0), draws=0), "draws is 0"),
        (
            lambda: gibbs_error(LossSurface(Sign(1.0), [(torch.ones(3, 1).double(), torch.ones(3, 2))]), 1, 1),
            "indices",
        ),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_numbers_that_are_not_rates_are_refused():
    with pytest.raises(ValueError, match="error rates"):
        bernoulli_kl(1.5, 0.5)
    with pytest.raises(ValueError, match="give a rate"):
        bernoulli_kl_inverse(0.5, -1)
