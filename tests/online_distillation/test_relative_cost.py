"""What a step of several networks is charged, in passes of one network, against multiply-adds counted by hand."""

import pytest
import torch
from support.cohorts import Staged, images, maker, views
from support.small import sgd

import steppe
from steppe.methods import parse

# multiply-adds per 8 x 8 image: three convolutions are below the cut, before layer3; above are its own and fc
TRUNK = 64 * 9 * (2 * 4 + 4 * 4 + 4 * 6)
BRANCH = 64 * 9 * 6 * 8 + 8 * 5
ALONE = TRUNK + BRANCH

CASES = {
    "plain": (steppe.Plain(), 1, 1),
    "dml": (steppe.DML(networks=3), 3, 3),
    "kdcl": (steppe.KDCL(networks=2), 2, 2),
    "okdph": (steppe.OKDPH(networks=2), 3, 3),
    "okdph, deaf": (steppe.OKDPH(networks=2, gradient="none"), 3, 2),
    "one": (steppe.ONE(branches=3), *2 * [(TRUNK + 3 * BRANCH + 6 * 3) / ALONE]),
    "okddip": (steppe.OKDDip(branches=4, form="network"), 4, 4),
    "pcl": (steppe.PCL(branches=2), *(n * (TRUNK + 2 * BRANCH + 16 * 5) / ALONE for n in (2, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_passes_are_those_of_one_network(name):
    method, forward, backward = CASES[name]
    net = method.build(maker(Staged))
    step = method.bind(net, sgd(net), steps=10)
    flags = [m.training for m in net.modules()]
    for k in range(2):
        step(images(seed=k))
    assert step.passes.per_step() == pytest.approx((forward, backward, 1), rel=1e-9)
    assert [m.training for m in net.modules()] == flags


def test_views_and_the_passes_of_sam_are_charged():
    method = steppe.PCL(branches=2)
    net = method.build(maker(Staged))
    step = method.bind(net, sgd(net), steps=10)
    step(views(2, 0))
    assert step.passes.backward == pytest.approx((2 * ALONE + 16 * 5) / ALONE, rel=1e-9)
    method = parse("sam+dml:networks=3")
    net = method.build(maker(Staged))
    step = method.bind(net, sgd(net), steps=10)
    step(images())
    assert (step.passes.forward, step.passes.backward, step.passes.updates) == (6, 6, 1)


def test_counting_draws_no_random_number_and_moves_no_statistic():
    method = steppe.ONE(branches=2)
    net = method.build(maker(Staged))
    before = {k: t.clone() for k, t in net.state_dict().items()}
    state = torch.get_rng_state()
    net.relative_cost(images())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
