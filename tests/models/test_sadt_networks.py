from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steppe.errors import InputError
from steppe.models import build, names

LEAST = {"simple-cnn": 18, "vgg16-sadt": 32, "inception-resnet-sadt": 10}
COUNT = {"simple-cnn": 637_112, "vgg16-sadt": 4_092_184, "inception-resnet-sadt": 306_338}
every_model = pytest.mark.parametrize("name", sorted(LEAST))


def keras_count(module: nn.Module) -> int:
    moving = sum(b.numel() for n, b in module.named_buffers() if n.endswith(("running_mean", "running_var")))
    return moving + trainable(module)


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def default(name: str) -> nn.Sequential:
    net = build(name, classes=10, channels=3, size=32)
    assert type(net) is nn.Sequential
    return net


def test_names_lists_the_networks_sorted() -> None:
    assert names() == sorted(names())
    assert {*LEAST, "simple-cnn-3fc"} <= set(names())


def test_the_simple_cnn_of_the_text_is_that_of_the_notebook_without_its_ten_units() -> None:
    text, notebook = default("simple-cnn-3fc"), default("simple-cnn")
    shapes = {k: v.shape for k, v in notebook.state_dict().items() if not k.startswith(("fc3", "head"))}
    assert shapes == {k: v.shape for k, v in text.state_dict().items() if not k.startswith("head")}
    assert text.head.weight.shape == (10, 64)
    assert text.conv1.weight.abs().max() <= 27**-0.5  # PyTorch's own start: uniform within 1 / sqrt(fan-in)
    assert text.conv1.bias.abs().max() > 0
    assert text(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(InputError, match="simple-cnn-3fc needs images of at least 18x18"):
        build("simple-cnn-3fc", classes=10, channels=3, size=17)


@every_model
def test_count_with_moving_statistics_is_that_of_the_original(name: str) -> None:
    assert keras_count(default(name)) == COUNT[name]


def test_simple_cnn_trains_635576_values() -> None:
    assert trainable(default("simple-cnn")) == 635_576


@pytest.mark.parametrize("classes", [10, 100])
def test_simple_cnn_layers_have_the_counts_of_the_original(classes: int) -> None:
    """The layer of 10 units keeps its width, so only the last count depends on the classes."""
    net = build("simple-cnn", classes=classes, channels=3, size=32)
    counts = [keras_count(layer) for layer in net.children()]
    expected = [1792, 256, 36928, 256, 36928, 256, 524800, 2048, 32832, 256, 650, 11 * classes]
    assert [c for c in counts if c] == expected


@pytest.mark.parametrize("name", ["vgg16-sadt", "inception-resnet-sadt"])
def test_a_layer_as_wide_as_the_classes_stands_before_the_head(name: str) -> None:
    net = build(name, classes=7, channels=3, size=32)
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (7, 7)
    assert isinstance(list(net.children())[-2], nn.ReLU)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("simple-cnn", [0.3]),
        ("vgg16-sadt", [0.1] * 13 + [0.3] * 2),
        ("inception-resnet-sadt", [0.2] * 5),
    ],
)
def test_dropout_rates_are_those_of_the_original(name: str, rates: list[float]) -> None:
    assert [m.p for m in default(name).modules() if isinstance(m, nn.Dropout)] == rates


@every_model
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_logits_have_one_column_per_class_at_the_least_size_and_at_32(
    name: str, channels: int, classes: int
) -> None:
    for size in {LEAST[name], 32}:
        net = build(name, classes=classes, channels=channels, size=size)
        assert net(torch.rand(2, channels, size, size)).shape == (2, classes)


@every_model
def test_one_pixel_below_the_least_size_is_refused_in_one_line_with_the_remedy(name: str) -> None:
    least, given = LEAST[name], LEAST[name] - 1
    with pytest.raises(InputError) as caught:
        build(name, classes=10, channels=3, size=given)
    assert str(caught.value) == (
        f"{name} needs images of at least {least}x{least}, these are {given}x{given}; "
        f"set data.size to {least} or more"
    )


@every_model
def test_the_refused_sizes_are_those_the_layers_cannot_take(name: str) -> None:
    """Below the least size the feature maps of the same convolutions and poolings vanish."""
    least = LEAST[name]
    layers = list(build(name, classes=2, channels=1, size=least).eval().children())
    features = nn.Sequential(*layers[: [type(m) for m in layers].index(nn.Flatten)])
    features(torch.zeros(1, 1, least, least))
    with pytest.raises(RuntimeError):
        features(torch.zeros(1, 1, least - 1, least - 1))


@every_model
@pytest.mark.parametrize(("classes", "channels", "said"), [(1, 3, "2 classes"), (10, 2, "1 or 3 channels")])
def test_too_few_classes_and_odd_channels_are_refused(name: str, classes: int, channels: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(name, classes=classes, channels=channels, size=32)


@pytest.mark.parametrize(
    ("name", "said"),
    [("simple-cn", "did you mean 'simple-cnn'"), ("x", "timm/NAME"), ("", "torchvision/NAME")],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(name, classes=10, channels=3, size=32)


@every_model
def test_biases_start_at_zero_and_batchnorm_has_the_keras_settings(name: str) -> None:
    for module in default(name).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.momentum, module.eps) == (0.01, 1e-3)


@pytest.mark.parametrize("name", ["vgg16-sadt", "inception-resnet-sadt"])
def test_convolutions_start_he_normal_cut_off_at_two_deviations(name: str) -> None:
    torch.manual_seed(0)
    seen = 0
    for module in default(name).modules():
        if not isinstance(module, nn.Conv2d):
            continue
        wanted = math.sqrt(2 / module.weight[0].numel())
        assert module.weight.abs().max() <= 2 * wanted / 0.8796
        if module.weight.numel() > 5000:
            seen += 1
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.05)
    assert seen > 3


@every_model
def test_dense_layers_and_simple_cnn_convolutions_start_glorot_uniform(name: str) -> None:
    torch.manual_seed(0)
    kinds = (nn.Linear, nn.Conv2d) if name == "simple-cnn" else (nn.Linear,)
    for module in default(name).modules():
        if not isinstance(module, kinds):
            continue
        outputs, inputs = module.weight.shape[:2]
        bound = math.sqrt(6 / ((inputs + outputs) * module.weight[0, 0].numel()))
        assert module.weight.abs().max() <= bound
        if module.weight.numel() > 5000:
            assert module.weight.abs().max() > 0.99 * bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_thin_branches_of_a_module_start_different() -> None:
    module = default("inception-resnet-sadt").get_submodule("module1")
    left, right = (module.get_parameter(f"{side}.0.weight") for side in ("left", "right"))
    assert not torch.equal(left, right)


@every_model
def test_equal_seeds_give_equal_weights_and_others_do_not(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(default(name).parameters())

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
