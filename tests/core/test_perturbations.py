"""Perturbations, filters and losses: lengths, directions, output units, scopes and the KL divergence."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.small import small_net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from steppe import InputError
from steppe.core.numerics import vector
from steppe.core.numerics.filters import (
    Units,
    in_scope,
    is_weight,
    norms_of_units,
    unit_norms,
    unit_sums,
    units_of,
)
from steppe.core.numerics.perturbations import ball_perturbation, sam_perturbation
from steppe.core.param_groups import owners
from steppe.models import build


@given(st.integers(0, 999), st.floats(1e-3, 10))
def test_the_ascent_has_length_rho_and_the_gradient_s_direction(seed, rho):
    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(3, 2, generator=g, dtype=torch.float64), None, torch.randn(4, generator=g).double()]
    e = sam_perturbation(grads, rho)
    assert vector.norm(e).item() == pytest.approx(rho)
    assert vector.dot(e, grads).item() == pytest.approx(rho * vector.norm(grads).item())
    assert e[1] is None


@given(st.integers(0, 999), st.floats(0.1, 3), st.floats(0.1, 3))
def test_several_ascents_stay_in_the_ball_with_the_radii_of_groups(seed, first, second):
    """An ascent of SAM with radii of its own is on the boundary of sum_t (|e_t| / rho_t)^2 <= 1."""
    g = torch.Generator().manual_seed(seed)
    radii, e = [first, 0.0, second], None
    for k in range(4):
        grads = [torch.randn(n, generator=g, dtype=torch.float64) for n in (3, 2, 4)]
        e = ball_perturbation(grads, radii, start=[None] * 3 if e is None else e)
        length = sum(float(e[i].norm() / radii[i]) ** 2 for i in (0, 2)) ** 0.5
        assert length == pytest.approx(1.0) if k == 0 else length <= 1 + 1e-9
        assert e[1] is None or not e[1].any()
    alike = ball_perturbation(grads, [first] * 3, start=e)
    assert all(map(torch.allclose, alike, ball_perturbation(grads, first, start=e)))


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
    assert inside(build("vgg16-sadt", classes=10, channels=3, size=32), "tensor:53") == []
    inception = build("inception-resnet-sadt", classes=10, channels=3, size=32)
    assert inside(inception, "tensor:47") == ["module2.middle.4.bias"]
    with pytest.raises(InputError, match="has 98 tensors"):
        inside(inception, "tensor:109")
    with pytest.raises(InputError, match="no convolution; choose scope"):
        in_scope(nn.Linear(2, 2), list(nn.Linear(2, 2).parameters()), "last-conv")
    with pytest.raises(InputError, match="has 2 tensors"):
        in_scope(nn.Linear(2, 2), [], "tensor:9")


def test_output_units_follow_the_layer():
    assert units_of(nn.Linear(3, 2).weight, nn.Linear(3, 2)) == Units((1,))
    assert units_of(nn.Conv2d(3, 2, 1).weight, nn.Conv2d(3, 2, 1)) == Units((1, 2, 3))
    assert units_of(nn.ConvTranspose2d(3, 2, 1).weight, nn.ConvTranspose2d(3, 2, 1)) == Units((0, 2, 3))
    assert units_of(nn.Linear(3, 2).bias, nn.Linear(3, 2)) is None
    assert units_of(nn.Embedding(3, 2).weight, nn.Embedding(3, 2)) == Units((1,))


class Conv1D(nn.Module):
    """GPT-2's layer, as transformers has it: a linear one with the weight (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))


@pytest.mark.parametrize("groups", [2, 4])
def test_units_of_a_grouped_transposed_convolution_are_those_of_its_groups(groups):
    layer = nn.ConvTranspose2d(4, 6 * groups, 3, groups=groups, bias=False)
    units, w = units_of(layer.weight, layer), layer.weight.detach()
    parts = w.chunk(groups)  # each group as a layer of its own
    norms = [part.pow(2).sum((0, 2, 3)).sqrt() for part in parts]
    assert torch.allclose(norms_of_units(w, units), torch.cat(norms))
    spread = torch.cat(
        [n.reshape(1, -1, 1, 1).expand(len(p), -1, 1, 1) for n, p in zip(norms, parts, strict=True)]
    )
    assert torch.allclose(unit_norms(w, units), spread)
    sums = torch.cat([p.sum((0, 2, 3), keepdim=True).expand(len(p), -1, 1, 1) for p in parts])
    assert torch.allclose(unit_sums([w], [layer.weight], [layer])[0], sums, atol=1e-6)
    assert units.fan_in(w) == 4 // groups * 9
    gpt2 = Conv1D()
    assert torch.allclose(norms_of_units(gpt2.weight, units_of(gpt2.weight, gpt2)), gpt2.weight.norm(dim=0))


def test_units_of_a_reparametrised_layer_are_those_of_its_weight():
    net = nn.Sequential(weight_norm(nn.ConvTranspose2d(8, 4, 3, groups=2)), weight_norm(nn.Linear(4, 3)))
    params = list(net.parameters())
    layers = owners(net, params)
    assert [layer is net[0] for layer in layers] == [True] * 3 + [False] * 3
    units = [units_of(p, layer) for p, layer in zip(params, layers, strict=True)]
    assert units == [None, Units((1, 2, 3)), Units((0, 2, 3), 2), None, Units((1,)), Units((1,))]
    assert [is_weight(p, layer) for p, layer in zip(params, layers, strict=True)] == [False, True, True] * 2


def test_units_of_old_weight_normalisation_and_of_a_convolution_named_as_gpt_2_s_layer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.utils.weight_norm(nn.ConvTranspose2d(8, 4, 3, groups=2), dim=1)
    for p in (layer.weight_g, layer.weight_v):
        unit_norms(p.detach(), units_of(p, layer))
    named = type("Conv1D", (nn.Conv1d,), {})(4, 6, 3)
    assert units_of(named.weight, named) == Units((1, 2))
