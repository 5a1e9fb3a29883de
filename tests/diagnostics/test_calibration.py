"""Calibration, margins and filter norms against hand values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from steppe.diagnostics.calibration import calibration, margins
from steppe.diagnostics.filter_norms import filter_norms
from steppe.errors import InputError


def logits(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_three_samples_have_their_hand_computed_values():
    z = logits([0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.3, 0.3, 0.4])
    y = torch.tensor([0, 0, 2])
    result = calibration(z, y, bins=10)
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.nll == pytest.approx(-(math.log(0.7) + math.log(0.25) + math.log(0.4)) / 3)
    briers = (0.3**2 + 0.2**2 + 0.1**2, 0.75**2 + 0.5**2 + 0.25**2, 0.3**2 + 0.3**2 + 0.6**2)
    assert result.brier == pytest.approx(sum(briers) / 3)
    # one sample in each of three bins: gaps 0.3, 0.5, 0.6
    assert result.ece == pytest.approx((0.3 + 0.5 + 0.6) / 3)
    assert result.confidence == pytest.approx((0.7 + 0.5 + 0.4) / 3)
    np.testing.assert_allclose(margins(z, y, of="probabilities"), [0.5, -0.25, 0.1])
    np.testing.assert_allclose(margins(z, y), [math.log(3.5), -math.log(2), math.log(4 / 3)])


def test_bins_exclude_their_lower_edge_and_empty_ones_do_not_count():
    z = logits([0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7])
    result = calibration(z, torch.tensor([0, 1, 1, 1]), bins=1)
    assert result.bins == [(4, pytest.approx(0.75), 0.75)]
    assert result.ece == pytest.approx(0.0, abs=1e-12)
    z = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    result = calibration(z, torch.tensor([0, 0]), bins=15)
    assert [c for c, _, _ in result.bins] == [0] * 14 + [2]
    assert result.ece == pytest.approx(0.5)
    assert result.nll == pytest.approx(500)
    assert math.isnan(result.bins[0][1])
    assert [c for c, _, _ in calibration(torch.zeros(3, 2), torch.tensor([0, 1, 1]), bins=4).bins] == [0, 3, 0, 0]


@given(st.integers(0, 1000), st.floats(-5, 5))
def test_a_constant_added_to_the_logits_changes_nothing(seed, shift):
    g = torch.Generator().manual_seed(seed)
    z, y = torch.randn(20, 5, generator=g, dtype=torch.float64), torch.randint(0, 5, (20,), generator=g)
    a, b = calibration(z, y), calibration(z + shift, y)
    assert (a.nll, a.brier, a.ece) == pytest.approx((b.nll, b.brier, b.ece))
    assert ((margins(z, y) > 0) == (z.argmax(1) == y).numpy()).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration(torch.ones(3), torch.ones(3)), r"logits are \(3,\)"),
        (lambda: calibration(torch.ones(3, 2), torch.ones(2)), r"y \(2,\)"),
        (lambda: calibration(torch.ones(0, 2), torch.ones(0)), r"give \(N, classes\)"),
        (lambda: calibration(torch.ones(3, 2), torch.ones(3), bins=0), "bins is 0"),
        (lambda: margins(torch.ones(3, 1), torch.zeros(3)), "at least 2 classes"),
        (lambda: margins(torch.ones(3, 2), torch.zeros(3), of="odds"), "of is 'odds'"),
        (lambda: filter_norms(nn.BatchNorm2d(3)), "no convolution or linear layer"),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_filter_norms_have_hand_computed_values():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 3, 1), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight[0], net[0].weight[1] = 1.5, 0.0
        net[2].weight.copy_(torch.tensor([[3.0, 0, 1], [4, 2, 0]]).view(2, 3, 1, 1))
        net[3].weight.copy_(torch.tensor([[5.0, 12.0]]))
    result = filter_norms(net)
    np.testing.assert_allclose(result.norms, [3, 0, 5, 2, 1, 13])
    assert result.layers == ["0.weight"] * 2 + ["2.weight"] * 3 + ["3.weight"]
    assert result.variation == pytest.approx(np.std([3, 0, 5, 2, 1, 13]) / 4)
    torch.manual_seed(0)
    result = filter_norms(nn.Conv2d(16, 4000, 3))
    assert (result.norms**2).mean() == pytest.approx(1 / 3, rel=0.01)
    assert result.variation < 0.05


@pytest.mark.parametrize("wrong", [-100, -1, 3])
def test_classes_that_are_none_are_one_line(wrong):
    for measure in (calibration, margins):
        with pytest.raises(InputError, match=f"y has {wrong}; give classes from 0 to 2"):
            measure(torch.randn(4, 3), torch.tensor([0, 1, wrong, 2]))
