"""Where networks of the OKDPH paper are split, and the sizes of trunk, branches and whole methods."""

import pytest
import torch
from torch import nn

import steppe
from steppe.models import build
from steppe.models.multi.split_point import default_split, modules_before_and_after

# split point, parameters of the trunk, and of a branch with its classifier of 10 classes, on the released code
SPLITS = {
    "resnet32-okdph": ("layer3", 112_592, 353_664 + 650),
    "resnet110-okdph": ("layer3", 275_280, 869_888 + 2_570),
    "wrn20-8-okdph": ("layer3", 1_629_776, 5_215_744 + 2_570),
    "vgg16-okdph": ("layer4", 7_640_640, 7_082_496 + 530_442),
    "densenet40-12": ("block3", 115_848, 58_944 + 1_330),
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", SPLITS)
def test_branches_begin_before_the_last_stage(name):
    where, trunk, branch = SPLITS[name]
    with torch.device("meta"):
        net = build(name, classes=10, channels=3, size=32)
    assert default_split(net) == where
    before, after = modules_before_and_after(net, where)
    assert sum(count(net.get_submodule(n)) for n in before) == trunk
    assert sum(count(net.get_submodule(n)) for n in after) == branch


@pytest.mark.parametrize(
    ("method", "total"),
    [
        (steppe.ONE(branches=2), 832_990),
        (steppe.OKDDip(branches=3, factor=8), 112_592 + 3 * (353_664 + 6_500) + 2 * 64 * 8),
        (steppe.FFL(branches=2), 832_920 + 16_228),
        (steppe.PCL(branches=2), 845_820),
    ],
    ids=lambda m: type(m).__name__,
)
def test_methods_of_branches_have_the_sizes_of_the_released_ones(method, total):
    assert count(method.build(lambda: build("resnet32-okdph", classes=100, channels=3, size=32))) == total
