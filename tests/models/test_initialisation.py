"""The initial weights of the networks: the distributions of Keras, of the literature and of the authors' codes."""

import math

import pytest
import torch
from torch import nn

from steppe.models import build

KERAS = ("simple-cnn", "vgg16-sadt", "inception-resnet-sadt")


def new(name: str, classes: int = 10, size: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    net = build(name, classes=classes, channels=3, size=size)
    assert type(net) is nn.Sequential
    return net


def fan(layer: nn.Conv2d, mode: str) -> int:
    return (layer.weight[0] if mode == "in" else layer.weight[:, 0]).numel()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("vgg16-bn", "out"),
        ("wrn-16-8", "out"),
        ("wrn-16-8-rwp", "in"),
        ("wrn20-8-okdph", "out"),
        ("vgg16-okdph", "out"),
        ("densenet40-12", "in"),
        ("simple-cnn", "in"),
        ("vgg16-sadt", "in"),
        ("inception-resnet-sadt", "in"),
    ],
)
def test_convolutions_start_normal_with_the_variance_of_their_code(name: str, mode: str) -> None:
    large = 0
    for layer in new(name).modules():
        if isinstance(layer, nn.Conv2d):
            std = math.sqrt(2 / fan(layer, mode))
            if name in KERAS:  # as in Keras, truncated at two deviations of the normal before truncation
                assert layer.weight.abs().max() <= 2 * std / 0.8796
            if layer.weight.numel() > 5000:
                large += 1
                assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert layer.bias is None or not layer.bias.any()
    assert large > 1


@pytest.mark.parametrize("name", KERAS)
def test_layers_of_keras_start_glorot_uniform_with_its_biases_and_batch_norm(name: str) -> None:
    he = {"fc1", "fc2"} if name == "vgg16-sadt" else set()
    for part, layer in new(name).named_modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (layer.momentum, layer.eps) == (0.01, 1e-3)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert not layer.bias.any()
        if isinstance(layer, nn.Linear) and part not in he:
            outputs, inputs = layer.weight.shape[:2]
            bound = math.sqrt(6 / (inputs + outputs))
            assert layer.weight.abs().max() <= bound
            if layer.weight.numel() > 5000:
                assert layer.weight.abs().max() > 0.99 * bound
                assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_weights_have_the_standard_deviations_of_the_sadt_notebook() -> None:
    cnn, vgg = new("simple-cnn"), new("vgg16-sadt")
    for layer, std in (
        (cnn.conv1, 0.272),
        (cnn.conv2, 0.059),
        (cnn.conv3, 0.059),
        (vgg.fc1, 0.088),
        (vgg.fc2, 0.063),
    ):
        assert layer.weight.detach().std().item() == pytest.approx(std, rel=0.05)


def test_the_other_layers_start_as_in_their_codes() -> None:
    net = new("simple-cnn-3fc")
    assert 0.9 * 27**-0.5 < net.conv1.weight.abs().max() <= 27**-0.5  # uniform within 1 / sqrt(fan-in)
    assert net.conv1.bias.abs().max() > 0
    assert float(new("vgg16-okdph").fc1.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    module = new("inception-resnet-sadt").get_submodule("module1")
    left, right = (module.get_parameter(f"{side}.0.weight") for side in ("left", "right"))
    assert not torch.equal(left, right)


def test_resnet18_and_the_wide_network_start_as_the_rwp_authors_do() -> None:
    """80.19 for CIFAR-100: a third for each of 4,800 filters, 1 for each BatchNorm weight, and the classifier."""
    net = new("resnet18", classes=100)
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in net.parameters()))
    assert norm == pytest.approx(math.sqrt(4800 / 3 + 4800 + 100 / 3 + 100 / 512 / 3), abs=0.02)
    assert norm == pytest.approx(80.19, abs=0.05)
    x = torch.randn(2, 3, 8, 8)
    assert not new("wrn-16-8-rwp", size=8)(x).any()
    assert new("wrn-16-8", size=8)(x).any()
