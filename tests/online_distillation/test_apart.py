"""What networks of a cohort have of their own: norms, clipping, and their turn."""

from __future__ import annotations

import copy

import pytest
import torch
from support.cohorts import Staged, images, maker
from support.small import sgd
from torch import nn

import steppe
from steppe.core.multi_network import member_of
from steppe.errors import InputError


def train(method: steppe.Method, net: nn.Module, dtype: torch.dtype = torch.float64, **options: object) -> None:
    step = method.bind(net, sgd(net), steps=10, **options)
    for k in range(4):
        step(images(k, dtype=dtype))


def cohort(method: steppe.Method) -> nn.Module:
    net = method.build(maker(Staged, dtype=torch.float64))
    with torch.no_grad():  # of gradients of very different lengths
        net.networks[0].fc.weight.mul_(30)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


STRANGERS = steppe.DML(networks=3, lam=0.0)


@pytest.mark.parametrize(
    ("together", "alone", "options"),
    [
        (STRANGERS, steppe.Plain(), {"clip": 0.05}),
        (steppe.On(steppe.SAM(rho=0.5, norm="network"), STRANGERS), steppe.SAM(rho=0.5), {"clip": 0.05}),
        (
            steppe.On(steppe.SAM(rho=0.5, ascents=3, norm="network"), STRANGERS),
            steppe.SAM(rho=0.5, ascents=3),
            {},
        ),
    ],
    ids=["clip", "clip and radius", "several ascents"],
)
def test_with_norms_of_their_own_strangers_train_as_if_alone_bit_for_bit(together, alone, options):
    net = cohort(together)
    each = [copy.deepcopy(n) for n in net.networks]
    common = copy.deepcopy(net)
    train(together, net, **options, clip_each=bool(options))
    for one, ours in zip(each, net.networks, strict=True):
        train(alone, one, **options)
        assert same(one, ours)
    if options:
        train(together, common, **options)
        assert not same(common.networks[1], net.networks[1])


def test_one_network_has_only_one_norm():
    nets = [maker(Staged, dtype=torch.float64)() for _ in range(2)]
    for net, norm, each in zip(nets, ("global", "network"), (False, True), strict=True):
        train(steppe.SAM(rho=0.1, norm=norm), net, clip=0.1, clip_each=each)
    assert same(*nets)


def test_branches_are_apart_and_what_they_share_is_a_part_of_its_own():
    net = steppe.ONE(branches=2).build(maker(Staged))
    number = dict(zip((n for n, _ in net.named_parameters()), member_of(net, list(net.parameters())), strict=True))
    for name, peer in number.items():
        wanted = [i for i in (1, 2) if name.startswith(f"body.branches.{i - 1}.")] or [0]
        assert [peer] == wanted, name
    assert set(number.values()) == {0, 1, 2}


def test_networks_in_turn_see_what_those_before_them_have_become():
    """Algorithm 1 by hand, with an optimizer for each network."""
    method = steppe.AlternatingDML(networks=2, T=2.0, lam=0.7)
    net = method.build(maker(Staged, dtype=torch.float64))
    step = method.bind(net, sgd(net))
    a, b = (copy.deepcopy(n) for n in net.networks)
    turns = [(a, b, sgd(a)), (b, a, sgd(b))]
    for k in range(3):
        batch = images(k, dtype=torch.float64)
        step(batch)
        for own, other, optimizer in turns:
            z, t = own(batch.x), copy.deepcopy(other)(batch.x).detach()
            p, q = torch.softmax(t / 2, 1), torch.softmax(z / 2, 1)
            pull = 4 * (p * (p.log() - q.log())).sum(1).mean()
            optimizer.zero_grad()
            (nn.functional.cross_entropy(z, batch.y) + 0.7 * pull).backward()
            optimizer.step()
    for ours, theirs in zip(net.networks, (a, b), strict=True):
        for (key, s), t in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(s, t, rtol=1e-12, atol=1e-12), key
        assert int(ours.bn1.num_batches_tracked) == 3


def test_networks_in_turn_differ_from_networks_at_once_and_cannot_take_another_step():
    at_once, in_turn = steppe.DML(), steppe.AlternatingDML()
    nets = [m.build(maker(Staged, dtype=torch.float64)) for m in (at_once, in_turn)]
    train(at_once, nets[0])
    train(in_turn, nets[1])
    assert not same(nets[0].networks[1], nets[1].networks[1])
    with pytest.raises(InputError, match="both define the step"):
        steppe.On(steppe.SAM(), in_turn)
