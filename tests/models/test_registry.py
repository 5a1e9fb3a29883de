"""All networks of the library: their sizes, what they take and refuse, their layers."""

import math

import pytest
import torch
from torch import nn

from steppe.core.numerics.filters import last_of
from steppe.errors import InputError
from steppe.models import MODELS, build, names

# least image size; parameters for 3x32x32 images and 10 classes, published or counted on the authors' code;
# those of the first three include BatchNorm's running statistics, as in Keras
NETWORKS = {
    "simple-cnn": (18, 637_112),
    "vgg16-sadt": (32, 4_092_184),
    "inception-resnet-sadt": (10, 306_338),
    "simple-cnn-3fc": (18, 635_466),
    "cifar10-fast": (12, 1_972_504),
    "resnet18": (8, 11_173_962),
    "resnet-thin": (8, 701_466),
    "vgg16-bn": (32, 15_253_578),
    "wrn-16-8": (8, 10_961_370),
    "wrn-28-10": (8, 36_479_194),
    "wrn-16-8-rwp": (8, 17_158_106),
    "wrn-28-10-rwp": (8, 46_160_474),
    "vit-cifar": (8, 9_523_722),
    "resnet32": (8, 464_154),
    "resnet110": (8, 1_727_962),
    "resnet32-okdph": (8, 466_906),
    "resnet110-okdph": (8, 1_147_738),
    "vgg16-okdph": (32, 15_253_578),
    "densenet40-12": (8, 176_122),
    "wrn20-8-okdph": (8, 6_848_090),
}
KERAS = list(NETWORKS)[:3]
LIGHT = [
    "simple-cnn",
    "inception-resnet-sadt",
    "cifar10-fast",
    "resnet-thin",
    "wrn-16-8",
    "vit-cifar",
    "densenet40-12",
]
every_network = pytest.mark.parametrize("name", NETWORKS)


def on_meta(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes=classes, channels=channels, size=size)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_every_network_is_listed_and_unknown_names_or_sizes_are_refused() -> None:
    assert sorted(NETWORKS) == sorted(MODELS)
    assert names() == sorted([*NETWORKS, "mlp", "gpt-tiny", "gpt-1m", "unet-small"])
    for name, message in [
        ("simple-cn", "did you mean 'simple-cnn'"),
        ("x", "timm/NAME"),
        ("", "torchvision/NAME"),
    ]:
        with pytest.raises(InputError, match=message):
            build(name, classes=10, channels=3, size=32)
    with pytest.raises(InputError, match="vit-cifar cuts images.* are 30x30; set data.size to 28 or 32"):
        build("vit-cifar", classes=10, channels=3, size=30)


@every_network
def test_it_has_as_many_parameters_as_published_and_documented(name: str) -> None:
    net, published = on_meta(name), NETWORKS[name][1]
    running = sum(b.numel() for n, b in net.named_buffers() if n.endswith(("running_mean", "running_var")))
    assert count(net) + (running if name in KERAS else 0) == published
    assert name == "simple-cnn-3fc" or f"{published:,}" in (MODELS[name].__doc__ or "")
    head = net.get_submodule("head")
    assert last_of(net, nn.Linear) is head
    if name not in KERAS[1:]:  # where the layer before the classifier is as wide as the classes
        more = 90 * sum(p[0].numel() for p in head.parameters())
        assert count(on_meta(name, 100)) == count(net) + more


@every_network
def test_it_takes_its_least_size_and_refuses_what_it_cannot_take(name: str) -> None:
    least = NETWORKS[name][0]
    for size in (least, 64):
        net = on_meta(name, 5, 1, size)
        assert type(net) is nn.Sequential
        assert net(torch.empty(2, 1, size, size, device="meta")).shape == (2, 5)
    for classes, channels, size, message in [
        (0, 3, 32, f"{name} needs at least 1 output"),
        (10, 2, 32, f"{name} needs images of 1 or 3 channels"),
        (
            *(10, 3, least - 1),
            f"{name} needs images of at least {least}x{least}, these are .*; set data.size to {least} or more",
        ),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            on_meta(name, classes, channels, size)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KERAS)
def test_the_refused_sizes_are_those_the_layers_cannot_take(name: str) -> None:
    """Below the least size the feature maps of the same convolutions and poolings vanish."""
    least = NETWORKS[name][0]
    layers = list(build(name, classes=2, channels=1, size=least).eval().children())
    features = nn.Sequential(*layers[: [type(m) for m in layers].index(nn.Flatten)])
    features(torch.zeros(1, 1, least, least))
    with pytest.raises(RuntimeError):
        features(torch.zeros(1, 1, least - 1, least - 1))


@pytest.mark.parametrize("name", LIGHT)
def test_equal_seeds_give_equal_weights_and_every_weight_learns(name: str) -> None:
    size = NETWORKS[name][0]

    def new(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(name, classes=4, channels=3, size=size)

    net, same, other = new(1), new(1), new(2)
    weights, copies, others = ([*n.parameters()] for n in (net, same, other))
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    nn.functional.cross_entropy(net(torch.randn(8, 3, size, size)), torch.arange(8) % 4).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in weights if p.requires_grad)


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
        ("wrn-16-8", {"unit1_2": (128, 32), "unit2_2": (256, 16), "unit3_2": (512, 8)}),
    ],
)
def test_stages_have_the_published_channels_and_sides(name: str, shapes: dict[str, tuple[int, int]]) -> None:
    net, outputs = on_meta(name), {}
    for key in shapes:
        net.get_submodule(key).register_forward_hook(
            lambda module, args, output, key=key: outputs.update({key: tuple(output.shape[1:3])})
        )
    net(torch.empty(2, 3, 32, 32, device="meta"))
    assert outputs == shapes


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("simple-cnn", [0.3]),
        ("vgg16-sadt", [0.1] * 13 + [0.3] * 2),
        ("inception-resnet-sadt", [0.2] * 5),
        ("vgg16-bn", [0.5] * 2),
        ("vit-cifar", [0.1] * (1 + 6 * 3)),
        ("vgg16-okdph", []),
        ("wrn-28-10-rwp", []),
    ],
)
def test_dropout_rates_are_those_of_the_original(name: str, rates: list[float]) -> None:
    assert [m.p for m in on_meta(name).modules() if isinstance(m, nn.Dropout)] == rates


@pytest.mark.parametrize("name", ["vgg16-sadt", "inception-resnet-sadt"])
def test_a_layer_as_wide_as_the_classes_is_before_the_head(name: str) -> None:
    net = on_meta(name, 7)
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (7, 7)
    assert isinstance(list(net.children())[-2], nn.ReLU)


def test_the_shortcut_without_weights_adds_zeros() -> None:
    net = build("resnet32", classes=10, channels=3, size=32)
    x = torch.randn(2, 16, 8, 8)
    out = net.layer2[0].shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 4, 4)
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_a_transformer_block_is_attention_and_dense_layers_on_normalised_tokens() -> None:
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
    expected = x1 + hidden @ w["dense.4.weight"].T + w["dense.4.bias"]
    assert torch.allclose(block(x), expected, atol=1e-10)


def test_every_patch_and_its_position_reach_the_class_token() -> None:
    net = build("vit-cifar", classes=3, channels=3, size=8).eval()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())
    moved = x.detach().roll(4, dims=3)  # the same patches in other places
    assert not torch.allclose(net(x), net(moved))
