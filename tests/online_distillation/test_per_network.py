"""What each network of an ensemble has of its own: norms, clipping, and updates in turn."""

import copy

import pytest
import torch
from support.cohorts import Staged, images, maker
from support.small import same, sgd
from torch import nn

import steppe
from steppe.core.multi_network import member_of
from steppe.core.numerics.filters import output_layers
from steppe.errors import InputError


def train(method: steppe.Method, net: nn.Module, **options: object) -> None:
    step = method.bind(net, sgd(net), steps=10, **options)
    for k in range(4):
        step(images(k, dtype=torch.float64))


def ensemble(method: steppe.Method) -> nn.Module:
    net = method.build(maker(Staged, dtype=torch.float64))
    with torch.no_grad():  # so that the networks' gradients have very different norms
        net.networks[0].fc.weight.mul_(30)
    return net


INDEPENDENT = steppe.DML(networks=3, lam=0.0)


@pytest.mark.parametrize(
    ("together", "alone", "options"),
    [
        (INDEPENDENT, steppe.Plain(), {"clip": 0.05}),
        (steppe.On(steppe.SAM(rho=0.5, norm="network"), INDEPENDENT), steppe.SAM(rho=0.5), {"clip": 0.05}),
        (
            steppe.On(steppe.SAM(rho=0.5, ascents=3, norm="network"), INDEPENDENT),
            steppe.SAM(rho=0.5, ascents=3),
            {},
        ),
        (steppe.On(steppe.AGC(clipping=1e-3), INDEPENDENT), steppe.AGC(clipping=1e-3), {}),
    ],
    ids=["clip", "clip and radius", "several ascents", "of units"],
)
def test_with_norms_per_network_independent_networks_train_bitwise_as_alone(together, alone, options):
    net = ensemble(together)
    each = [copy.deepcopy(n) for n in net.networks]
    common = copy.deepcopy(net)
    train(together, net, **options, clip_each=bool(options))
    for one, ours in zip(each, net.networks, strict=True):
        train(alone, one, **options)
        assert same(one, ours)
    if options:
        train(together, common, **options)
        assert not same(common.networks[1], net.networks[1])


@pytest.mark.parametrize(
    ("method", "heads"),
    [
        (steppe.ONE(branches=2), ["gate.0"]),
        (steppe.OKDDip(factor=2), ["key", "query"]),
        (steppe.OKDDip(factor=2, form="network"), ["key", "query"]),
        (steppe.FFL(), ["fusion.8"]),
        (steppe.PCL(branches=2), ["classifier"]),
        (steppe.OKDPH(), []),
    ],
    ids=repr,
)
def test_agc_leaves_the_classifier_of_each_member_and_the_heads_of_a_method_as_they_are(method, heads):
    net = method.build(maker(Staged))
    names = {id(module): name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    layers = sorted(names[id(layer)] for layer in output_layers(net))
    assert layers == sorted([*heads, *(name for name in names.values() if name.endswith(".fc"))])
    assert len(layers) == method.size + len(heads)


def test_for_one_network_norms_per_network_change_nothing():
    nets = [maker(Staged, dtype=torch.float64)() for _ in range(2)]
    for net, norm, each in zip(nets, ("global", "network"), (False, True), strict=True):
        train(steppe.SAM(rho=0.1, norm=norm), net, clip=0.1, clip_each=each)
    assert same(*nets)


def test_parameters_of_branches_have_their_number_and_shared_ones_zero():
    net = steppe.ONE(branches=2).build(maker(Staged))
    numbers = member_of(net, list(net.parameters()))
    for (name, _), number in zip(net.named_parameters(), numbers, strict=True):
        expected = [i for i in (1, 2) if name.startswith(f"body.branches.{i - 1}.")] or [0]
        assert [number] == expected, name
    assert set(numbers) == {0, 1, 2}


def test_updates_in_turn_are_a_step_of_their_own_and_cannot_be_combined_with_sam():
    with pytest.raises(InputError, match="both define the step"):
        steppe.On(steppe.SAM(), steppe.AlternatingDML())
