"""Modules around the split point: exchanged ones are named, and ONE's gate follows merged patches."""

import pytest
import torch
from support.cohorts import Staged, images
from torch import Tensor, nn

import steppe
from steppe.models.multi.branched import build_branched

METHODS = [
    steppe.ONE(ramp=0),
    steppe.OKDDip(ramp=0, factor=2),
    steppe.OKDDip(ramp=0, factor=2, form="network"),
    steppe.FFL(ramp=0),
    steppe.PCL(ramp=0),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_an_exchanged_head_is_named_and_works_where_build_makes_it(method: steppe.Method) -> None:
    x, y = images().x, torch.randint(0, 3, (12,))

    def with_head() -> nn.Module:
        net = Staged()
        net.fc = nn.Linear(net.fc.in_features, 3)
        return net

    net = method.build(Staged)
    for member in net.members:
        member.fc = nn.Linear(member.fc.in_features, 3)
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(
        steppe.InputError, match="fc was exchanged .*; exchange it in the function that build gets"
    ):
        step(x, y)
    net = method.build(with_head)
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1))
    assert step(x, y).logits.shape == (12, 3)


def test_an_exchanged_module_of_the_trunk_is_named() -> None:
    body = build_branched(Staged, 2, "layer3")
    body.trunk.layer1 = Staged().layer1
    with pytest.raises(steppe.InputError, match="layer1 was exchanged after the method built its networks"):
        body(images().x)


def test_other_errors_stay_what_they_are() -> None:
    body = build_branched(Staged, 2, "layer3")
    body.branches[1].fc.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(steppe.InputError("own")))
    with pytest.raises(steppe.InputError, match="^own$"):
        body(images().x)


class Merging(nn.Module):
    """Swin's patch merging: each 2 x 2 positions (B, H, W, C) become one of 4 C channels, and then 2 C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def merge(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.merge(x)))


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 2, stride=2)
        self.stages = nn.ModuleList([Merging(5), Merging(10)])
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((1, 2)))


def test_the_gate_of_one_takes_the_mean_of_merged_patches() -> None:
    torch.manual_seed(0)
    net = steppe.ONE(branches=2, split_at="stages.1").build(Merged)
    x = torch.randn(6, 3, 16, 16)
    assert net.gate[0].in_features == 40
    trunk, patches = net.body.trunk, []
    net.body.branches[0].stages[1].norm.register_forward_pre_hook(lambda _, args: patches.append(args[0]))
    entered = net.body(x).entered
    torch.testing.assert_close(entered, patches[0].mean((1, 2)))
    before = trunk.stages[0](trunk.stem(x).permute(0, 2, 3, 1))
    torch.testing.assert_close(entered, Merging(10).merge(before).mean((1, 2)))
    step = steppe.ONE(branches=2, ramp=0).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    weight = net.gate[0].weight.detach().clone()
    step(x, torch.randint(0, 4, (6,)))
    assert not torch.equal(weight, net.gate[0].weight)
