"""Perturbations, filters and losses: lengths, directions, output units, scopes and the KL divergence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.small import small_net
from torch import nn

from steppe import InputError
from steppe.core.numerics import vector
from steppe.core.numerics.filters import in_scope, unit_dims
from steppe.core.numerics.perturbations import sam_perturbation
from steppe.models import build


@given(st.integers(0, 999), st.floats(1e-3, 10))
def test_the_ascent_has_length_rho_and_the_gradient_s_direction(seed, rho):
    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(3, 2, generator=g, dtype=torch.float64), None, torch.randn(4, generator=g).double()]
    e = sam_perturbation(grads, rho)
    assert vector.norm(e).item() == pytest.approx(rho)
    assert vector.dot(e, grads).item() == pytest.approx(rho * vector.norm(grads).item())
    assert e[1] is None


def test_the_ascent_of_a_zero_gradient_is_zero():
    assert torch.equal(sam_perturbation([torch.zeros(3)], 0.1)[0], torch.zeros(3))


def inside(net: nn.Module, scope: str) -> list[str]:
    names, params = zip(*net.named_parameters(), strict=True)
    return [n for n, i in zip(names, in_scope(net, params, scope), strict=True) if i]


def test_scopes_select_what_they_name():
    net = small_net()
    assert inside(net, "all") == [n for n, _ in net.named_parameters()]
    assert inside(net, "kernels") == ["0.weight", "4.weight", "9.weight", "11.weight"]
    assert inside(net, "last-conv") == ["4.weight", "4.bias"]
    assert inside(net, "last-dense") == ["11.weight", "11.bias"]
    assert inside(net, "last-bias") == ["11.bias"]
    # conv weight and bias, then gamma, beta, mean and variance of the norm, then the next convolution
    assert inside(net, "tensor:6") == ["4.weight"]
    assert inside(net, "tensor:4") == []
    assert inside(build("simple-cnn", classes=10, channels=3, size=32), "tensor:7") == ["conv2.bias"]
    with pytest.raises(InputError, match="no convolution; choose scope"):
        in_scope(nn.Linear(2, 2), list(nn.Linear(2, 2).parameters()), "last-conv")
    with pytest.raises(InputError, match="has 2 tensors"):
        in_scope(nn.Linear(2, 2), [], "tensor:9")


def test_output_units_follow_the_layer():
    assert unit_dims(nn.Linear(3, 2).weight, nn.Linear(3, 2)) == (1,)
    assert unit_dims(nn.Conv2d(3, 2, 1).weight, nn.Conv2d(3, 2, 1)) == (1, 2, 3)
    assert unit_dims(nn.ConvTranspose2d(3, 2, 1).weight, nn.ConvTranspose2d(3, 2, 1)) == (0, 2, 3)
    assert unit_dims(nn.Linear(3, 2).bias, nn.Linear(3, 2)) is None
    assert unit_dims(nn.Embedding(3, 2).weight, nn.Embedding(3, 2)) is None
