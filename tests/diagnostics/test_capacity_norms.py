"""Norms against dense matrices and against the papers' formulas by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from steppe.diagnostics.capacity_norms import norms, operator_norm
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError


def matrix_of(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """The layer without its bias as a dense matrix."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        return (layer(basis) - zero).flatten(1).T


@settings(max_examples=8, deadline=None)
@given(
    stride=st.integers(1, 2), padding=st.integers(0, 2), size=st.integers(3, 5), groups=st.sampled_from([1, 2]),
    kind=st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_convolution_s_norm_is_that_of_its_matrix(stride, padding, size, groups, kind, seed):
    torch.manual_seed(seed)
    layer = kind(2, 4, 3, stride=stride, padding=padding, groups=groups).double()
    shape = (2, size, size)
    expected = float(torch.linalg.matrix_norm(matrix_of(layer, shape), 2))
    rng = torch.Generator().manual_seed(1)
    assert operator_norm(layer, shape, steps=300, rng=rng) == pytest.approx(expected, rel=2e-2)
    # a lower bound, whatever the number of steps
    assert operator_norm(layer, shape, steps=3, rng=rng) <= expected * (1 + 1e-9)


def test_a_linear_layer_s_norm_is_exact_and_that_of_zeros_is_0():
    layer = nn.Linear(7, 4).double()
    assert operator_norm(layer, (7,)) == pytest.approx(
        float(torch.linalg.svdvals(layer.weight.detach())[0]), rel=1e-12
    )
    convolution = nn.Conv2d(1, 1, 3)
    nn.init.zeros_(convolution.weight)
    assert operator_norm(convolution, (1, 4, 4)) == 0


@pytest.mark.parametrize("parametrize", [weight_norm, spectral_norm])
def test_a_parametrized_convolution_has_the_norms_of_its_weight(parametrize):
    torch.manual_seed(0)
    net = nn.Sequential(parametrize(nn.Conv2d(1, 2, 3, padding=1)), nn.Flatten(), nn.Linear(50, 3)).eval()
    plain = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    with torch.no_grad():
        plain[0].weight.copy_(net[0].weight), plain[0].bias.copy_(net[0].bias)
        plain[2].load_state_dict(net[2].state_dict())
    data = [(torch.randn(6, 1, 5, 5), torch.arange(6) % 3)]
    data[0] = (data[0][0], plain(data[0][0]).argmax(1))  # a positive margin
    surface, of_plain = LossSurface(net, data), LossSurface(plain, data)
    assert norms(surface, 6) == norms(of_plain, 6)
    start, weights = ([p.detach().clone() for p in s.params] for s in (surface, of_plain))
    with torch.no_grad():
        plain[0].weight.copy_(net[0].weight * 2), plain[2].weight.mul_(3), net[2].weight.mul_(3)
        if parametrize is weight_norm:
            net[0].parametrizations.weight.original0.mul_(2)
            assert norms(surface, 6, start).bartlett == pytest.approx(norms(of_plain, 6, weights).bartlett)


class Same(nn.Conv2d):
    """Pads in forward, as timm's Conv2dSame."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def test_a_convolution_with_a_forward_of_its_own_has_its_norm():
    torch.manual_seed(0)
    layer = Same(1, 2, 3).double()
    expected = float(torch.linalg.matrix_norm(matrix_of(layer, (1, 4, 4)), 2))
    assert operator_norm(layer, (1, 4, 4), steps=300) == pytest.approx(expected, rel=1e-2)


def test_a_frozen_layer_has_not_moved_from_its_start():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 4)
    data = [(x, net(x).argmax(1))]
    start = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        net[2].weight.mul_(2)
    free = norms(LossSurface(net, data), 6, start)
    net[0].requires_grad_(False)
    assert norms(LossSurface(net, data), 6, start[2:]).bartlett == pytest.approx(free.bartlett, rel=1e-9)


def two_layers() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """W_1 = diag(3, 4) of the inputs, W_2 = 2 of their first and second sum: logits (2(3a), 2(4b))."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        for layer, weight in ((net[0], [[3.0, 0.0], [0.0, 4.0]]), (net[2], [[2.0, 0.0], [0.0, 2.0]])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    return net, x, torch.tensor([0, 0, 1, 1])


def test_every_term_has_its_hand_computed_value_or_none_without_a_margin():
    net, x, y = two_layers()
    start = [torch.zeros_like(p) for p in net.parameters()]
    start[0] = torch.eye(2, dtype=torch.float64)
    result = norms(LossSurface(net, [(x, y)]), 100, start)
    # margins are 6, 12, 8 and 24
    margin = float(np.quantile([6, 12, 8, 24], 0.1))
    assert (result.layers, result.margin) == (2, pytest.approx(margin))
    assert result.frobenius == pytest.approx(math.log(5 * math.sqrt(8)))
    assert result.spectral == pytest.approx(math.log(4 * 2))
    # from the identity: diag(2, 3); from 0: diag(2, 2)
    assert result.distance == pytest.approx(math.sqrt(4 + 9 + 4 + 4))
    root = margin * math.sqrt(100)
    assert result.neyshabur == pytest.approx(math.log(4 * 3 * 5 * math.sqrt(8) / root))
    assert result.golowich == pytest.approx(math.log(math.sqrt(2) * 3 * 5 * math.sqrt(8) / root))
    inputs = math.sqrt((1 + 4 + 1 + 9) / 4)
    rows = ((2 + 3) / 4) ** (2 / 3) + ((2 + 2) / 2) ** (2 / 3)
    assert result.bartlett == pytest.approx(math.log(inputs * math.log(2) / root * 8 * rows**1.5))
    assert norms(LossSurface(net, [(x, y)]), 100).distance is None
    net, x, y = two_layers()
    result = norms(LossSurface(net, [(x, 1 - y)]), 100)
    assert result.margin < 0
    assert (result.neyshabur, result.golowich, result.bartlett) == (None, None, None)


def test_measuring_changes_no_state():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    norms(LossSurface(net, [(torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 0]))]), 5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


X, Y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("model", "batch", "samples", "message"),
    [
        (nn.Linear(2, 2), (X, Y), 0, "samples is 0; give at least 1"),
        (nn.BatchNorm1d(2), (X, Y), 5, "no convolution or linear"),
        (nn.Linear(2, 2), (X, torch.rand(4, 2)), 5, "targets are not class indices"),
        (nn.Linear(2, 2), {"x": X, "labels": Y}, 5, "a batch's inputs are not a tensor"),
    ],
)
def test_impossible_arguments_are_one_line(model, batch, samples, message):
    with pytest.raises(InputError, match=message):
        norms(LossSurface(model, [batch]), samples)
