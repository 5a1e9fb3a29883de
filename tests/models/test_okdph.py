"""Networks of the OKDPH paper: their sizes, the shapes inside, where they are cut, and how they start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import steppe
from steppe.errors import InputError
from steppe.models import build
from steppe.models.multi.split_point import default_split, modules_before_and_after

# parameters with 10 and with 100 classes, as the reference counted them on the released code
SIZES = {
    "resnet32-okdph": (466_906, 472_756),
    "resnet110-okdph": (1_147_738, 1_170_868),
    "wrn20-8-okdph": (6_848_090, 6_871_220),
    "vgg16-okdph": (15_253_578, 15_299_748),
    "densenet40-12": (176_122, 188_092),
    "resnet32": (464_154, 464_154 + 90 * 65),
    "resnet110": (1_727_962, 1_727_962 + 90 * 65),
}
# cut, parameters of the trunk, and of a branch with its classifier of 10 classes
CUTS = {
    "resnet32-okdph": ("layer3", 112_592, 353_664 + 650),
    "resnet110-okdph": ("layer3", 275_280, 869_888 + 2_570),
    "wrn20-8-okdph": ("layer3", 1_629_776, 5_215_744 + 2_570),
    "vgg16-okdph": ("layer4", 7_640_640, 7_082_496 + 530_442),
    "densenet40-12": ("block3", 115_848, 58_944 + 1_330),
}


def on_meta(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes=classes, channels=channels, size=size)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_released_code_or_the_literature(name):
    assert (count(on_meta(name)), count(on_meta(name, 100))) == SIZES[name]


@pytest.mark.parametrize("name", CUTS)
def test_branches_begin_before_the_last_stage(name):
    where, below, above = CUTS[name]
    net = on_meta(name)
    assert default_split(net) == where
    before, after = modules_before_and_after(net, where)
    assert sum(count(net.get_submodule(n)) for n in before) == below
    assert sum(count(net.get_submodule(n)) for n in after) == above


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
def test_branch_models_have_the_sizes_of_the_released_ones(method, total):
    net = method.build(lambda: build("resnet32-okdph", classes=100, channels=3, size=32))
    # the fusion's size is the reference's, as are those of gate and ensemble
    assert count(net) == total


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet32-okdph", {"layer1": (16, 32), "layer2": (32, 16), "layer3": (64, 8)}),
        ("resnet110-okdph", {"layer1": (64, 32), "layer2": (128, 16), "layer3": (256, 8)}),
        ("wrn20-8-okdph", {"layer1": (64, 32), "layer3": (256, 8)}),
        ("vgg16-okdph", {"stem": (64, 16), "layer1": (128, 8), "layer3": (512, 2), "layer4": (512, 1)}),
        (
            "densenet40-12",
            {"block1": (96, 32), "transition1": (48, 16), "transition2": (60, 8), "block3": (132, 8)},
        ),
        ("resnet32", {"layer1": (16, 32), "layer2": (32, 16), "layer3": (64, 8)}),
    ],
)
def test_shapes_inside(name, shapes):
    net, seen = on_meta(name), {}
    for key in shapes:
        net.get_submodule(key).register_forward_hook(
            lambda module, args, output, key=key: seen.update({key: (output.shape[1], output.shape[2])})
        )
    logits = net(torch.empty(2, 3, 32, 32, device="meta"))
    assert logits.shape == (2, 10)
    assert seen == shapes


def test_convolutions_start_as_they_should():
    torch.manual_seed(0)
    for name, mode in (("wrn20-8-okdph", "out"), ("vgg16-okdph", "out"), ("densenet40-12", "in")):
        net = build(name, classes=10, channels=3, size=32)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
                fan = (layer.out_channels if mode == "out" else layer.in_channels) * layer.kernel_size[0] ** 2
                assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan), rel=0.05)
    vgg = build("vgg16-okdph", classes=10, channels=3, size=32)
    assert float(vgg.fc1.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_the_shortcut_without_weights_adds_zeros():
    net = build("resnet32", classes=10, channels=3, size=32)
    x = torch.randn(2, 16, 8, 8)
    out = net.layer2[0].shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 4, 4)
    assert not out[:, :8].any() and not out[:, 24:].any()


@pytest.mark.parametrize("name", ["densenet40-12", "resnet32-okdph", "resnet32"])
def test_they_take_other_images_and_refuse_small_ones(name):
    net = build(name, classes=7, channels=1, size=28)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    with pytest.raises(InputError, match="at least 8x8"):
        build(name, classes=7, channels=1, size=4)
