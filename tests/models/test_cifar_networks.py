"""Networks of the RWP paper: their parameters counted by hand, their shapes, their start."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from steppe.errors import InputError
from steppe.models import MODELS, build, names

LEAST = {
    "resnet18": 8,
    "resnet-thin": 8,
    "vgg16-bn": 32,
    "wrn-16-8": 8,
    "wrn-28-10": 8,
    "wrn-16-8-rwp": 8,
    "wrn-28-10-rwp": 8,
    "vit-cifar": 8,
}
LIGHT = ["resnet18", "resnet-thin", "vgg16-bn", "wrn-16-8", "vit-cifar"]
every_model = pytest.mark.parametrize("name", list(LEAST))


def on_meta(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes=classes, channels=channels, size=size)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(inputs: int, outputs: int, side: int = 3) -> int:
    """Weights of a convolution without biases, and of its BatchNorm."""
    return inputs * outputs * side**2 + 2 * outputs


def resnet(width: int, classes: int, channels: int) -> int:
    total, inputs = conv(channels, width), width
    for outputs in (width, 2 * width, 4 * width, 8 * width):
        total += conv(inputs, outputs) + 3 * conv(outputs, outputs)
        total += conv(inputs, outputs, 1) if inputs != outputs else 0
        inputs = outputs
    return total + (inputs + 1) * classes


def vgg(classes: int, channels: int) -> int:
    widths = [channels, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    features = sum(conv(a, b) + b for a, b in pairwise(widths))
    return features + 2 * (512 * 512 + 512) + (512 + 1) * classes


def wide(units: int, factor: int, classes: int, channels: int) -> int:
    total, inputs = channels * 16 * 9, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        for _ in range(units):
            total += 2 * inputs + 9 * inputs * width + 2 * width + 9 * width * width
            total += inputs * width if inputs != width else 0
            inputs = width
    return total + 2 * inputs + (inputs + 1) * classes


def vit(classes: int, channels: int, size: int) -> int:
    tokens = (16 * channels + 1) * 512 + 512 + (1 + (size // 4) ** 2) * 512
    attention = 2 * 512 + 512 * 3 * 512 + (512 + 1) * 512
    dense = 2 * 512 + 2 * (512 + 1) * 512
    return tokens + 6 * (attention + dense) + 2 * 512 + (512 + 1) * classes


BY_HAND = {
    "resnet18": lambda c, ch: resnet(64, c, ch),
    "resnet-thin": lambda c, ch: resnet(16, c, ch),
    "vgg16-bn": vgg,
    "wrn-16-8": lambda c, ch: wide(2, 8, c, ch),
    "wrn-28-10": lambda c, ch: wide(4, 10, c, ch),
    "wrn-16-8-rwp": lambda c, ch: wide(3, 8, c, ch),
    "wrn-28-10-rwp": lambda c, ch: wide(5, 10, c, ch),
    "vit-cifar": lambda c, ch: vit(c, ch, 32),
}


@every_model
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (100, 3), (7, 1)])
def test_parameters_are_as_many_as_counted_by_hand(name: str, classes: int, channels: int) -> None:
    net = on_meta(name, classes, channels)
    assert count(net) == BY_HAND[name](classes, channels)
    if (classes, channels) == (10, 3):
        assert f"{count(net):,} parameters" in (MODELS[name].__doc__ or "")


@pytest.mark.parametrize(("name", "millions"), [("wrn-16-8", 11.0), ("wrn-28-10", 36.5)])
def test_wide_networks_have_the_published_count(name: str, millions: float) -> None:
    """Zagoruyko and Komodakis, table 5."""
    assert round(count(on_meta(name)) / 1e6, 1) == millions


@pytest.mark.parametrize(("name", "layers"), [("wrn-16-8", 16), ("wrn-28-10", 28)])
def test_depth_is_the_name_s_and_the_authors_have_one_more_unit_in_each_group(name: str, layers: int) -> None:
    def convolutions(net: nn.Module) -> int:
        return sum(isinstance(m, nn.Conv2d) for m in net.modules())

    shortcuts = (
        3  # convolutions, but not of the depth; the name counts them in place of the classifier and two more
    )
    plain = convolutions(on_meta(name)) - shortcuts
    assert plain + 1 == layers - 2
    assert convolutions(on_meta(f"{name}-rwp")) - shortcuts == plain + 6


@every_model
def test_every_network_is_listed_and_takes_what_it_says(name: str) -> None:
    assert name in names()
    for size in {LEAST[name], 32, 64}:
        net = on_meta(name, 5, 1, size)
        assert type(net) is nn.Sequential
        assert net(torch.empty(2, 1, size, size, device="meta")).shape == (2, 5)


@every_model
def test_what_a_network_cannot_take_is_refused_in_one_line(name: str) -> None:
    for classes, channels, size, said in [
        (1, 3, 32, f"{name} needs at least 2 classes"),
        (10, 2, 32, f"{name} needs images of 1 or 3 channels"),
        (10, 3, LEAST[name] - 1, f"{name} needs images of at least {LEAST[name]}x{LEAST[name]}"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            on_meta(name, classes, channels, size)
        assert "\n" not in str(caught.value)


def test_a_size_that_is_no_whole_number_of_patches_is_refused_with_those_beside_it() -> None:
    with pytest.raises(InputError, match="vit-cifar cuts images.* are 30x30; set data.size to 28 or 32"):
        build("vit-cifar", classes=10, channels=3, size=30)


@pytest.mark.parametrize("name", LIGHT)
def test_equal_seeds_give_equal_weights_and_every_weight_learns(name: str) -> None:
    def new(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(name, classes=4, channels=3, size=LEAST[name])

    net, same, other = new(1), new(1), new(2)
    weights, copies, others = ([*n.parameters()] for n in (net, same, other))
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    x = torch.randn(4, 3, LEAST[name], LEAST[name])
    nn.functional.cross_entropy(net(x), torch.arange(4)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in weights)


def test_resnet18_starts_with_the_length_that_the_rwp_paper_prints() -> None:
    """80.19 for CIFAR-100: a third for each of 4,800 filters, 1 for each BatchNorm weight, and the classifier."""
    torch.manual_seed(0)
    net = build("resnet18", classes=100, channels=3, size=32)
    length = math.sqrt(sum(float(p.detach().double().square().sum()) for p in net.parameters()))
    assert length == pytest.approx(math.sqrt(4800 / 3 + 4800 + 100 / 3 + 100 / 512 / 3), abs=0.02)
    assert length == pytest.approx(80.19, abs=0.05)


@pytest.mark.parametrize(("name", "outputs"), [("vgg16-bn", True), ("wrn-16-8", True), ("wrn-16-8-rwp", False)])
def test_convolutions_start_normal_with_the_variance_of_their_code(name: str, outputs: bool) -> None:
    torch.manual_seed(0)
    for module in build(name, classes=10, channels=3, size=32).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 50_000:
            fan = module.weight[0].numel() if not outputs else module.weight[:, 0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.02)
            assert module.bias is None or not module.bias.any()


def test_the_authors_wide_network_says_nothing_at_first() -> None:
    net = build("wrn-16-8-rwp", classes=10, channels=3, size=8)
    assert not net(torch.randn(2, 3, 8, 8)).any()
    assert build("wrn-16-8", classes=10, channels=3, size=8)(torch.randn(2, 3, 8, 8)).any()


def test_vgg_has_the_two_dropouts_and_the_transformer_one_after_each_dense_layer() -> None:
    def rates(name: str) -> list[float]:
        return [m.p for m in on_meta(name).modules() if isinstance(m, nn.Dropout)]

    assert rates("vgg16-bn") == [0.5, 0.5]
    assert rates("vit-cifar") == [0.1] * (1 + 6 * 3)
    assert not rates("wrn-28-10-rwp")


def test_the_transformer_is_attention_and_dense_layers_on_normalised_tokens() -> None:
    """One block restated with matrix products in float64."""
    torch.manual_seed(0)
    net = build("vit-cifar", classes=3, channels=3, size=8).double().eval()
    block = net.get_submodule("block1")
    x = torch.randn(2, 5, 512, dtype=torch.float64)

    def normal(t: torch.Tensor) -> torch.Tensor:
        return (t - t.mean(-1, keepdim=True)) / (t.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    w = dict(block.named_parameters())
    qkv = (normal(x) @ w["attention.qkv.weight"].T).view(2, 5, 3, 8, 64)
    heads = []
    for h in range(8):
        q, k, v = (qkv[:, :, i, h] for i in range(3))
        heads.append((q @ k.transpose(1, 2) / 8).softmax(-1) @ v)
    x1 = x + torch.cat(heads, 2) @ w["attention.out.weight"].T + w["attention.out.bias"]
    hidden = normal(x1) @ w["dense.1.weight"].T + w["dense.1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    wanted = x1 + hidden @ w["dense.4.weight"].T + w["dense.4.bias"]
    assert torch.allclose(block(x), wanted, atol=1e-10)


def test_every_patch_and_its_place_reach_the_class_token() -> None:
    net = build("vit-cifar", classes=3, channels=3, size=8).eval()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())
    moved = x.detach().roll(4, dims=3)  # the same patches in other places
    assert not torch.allclose(net(x), net(moved))
