"""Where networks of the OKDPH paper are split, and the sizes of trunk, branches and whole methods."""

import pytest
import torch
from support.foreign import importable
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


DEFAULTS = {
    "simple-cnn": "conv3",
    "simple-cnn-3fc": "conv3",
    "vgg16-sadt": "conv5_1",
    "vgg16-bn": "conv5_1",
    "inception-resnet-sadt": "module3",
    "resnet18": "unit4_1",
    "resnet-thin": "unit4_1",
    "wrn-16-8-rwp": "unit3_1",
    "wrn-16-8": "unit3_1",
    "vit-cifar": "block5",
    "resnet32": "layer3",
    "resnet110": "layer3",
    "cifar10-fast": "group3",
}
TORCHVISION = {
    "alexnet": "features.6",
    "vgg11": "features.16",
    "vgg16": "features.24",
    "resnet18": "layer4",
    "densenet121": "features.denseblock4",
    "squeezenet1_1": None,
    "shufflenet_v2_x0_5": "stage4",
    "mobilenet_v2": "features.14",
    "mobilenet_v3_small": "features.9",
    "mnasnet0_5": "layers.12",
    "efficientnet_b0": "features.6",
    "googlenet": "inception5a",
    "inception_v3": "Mixed_7a",
    "convnext_tiny": "features.6",
    "vit_b_16": "encoder.layers.encoder_layer_9",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_branches_begin_with_the_last_stage_or_the_last_quarter_of_the_blocks(name):
    with torch.device("meta"):
        assert default_split(build(name, classes=10, channels=3, size=32)) == DEFAULTS[name]


@pytest.mark.vision
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("name", TORCHVISION)
def test_branches_of_torchvision_s_networks_begin_with_the_last_stage(name, classes):
    importable("torchvision")
    import torchvision

    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    if TORCHVISION[name] is None:
        with pytest.raises(steppe.InputError, match="no dense layer"):
            default_split(net)
    else:
        assert default_split(net) == TORCHVISION[name]


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
