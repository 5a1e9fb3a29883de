"""Networks of tables, text and dense targets: restated in float64, causal, and refused for other data."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from steppe.errors import InputError
from steppe.models import build


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_an_mlp_is_products_and_maxima_and_has_the_documented_size(outputs, features, width, depth) -> None:
    net = build(f"mlp-{width}x{depth}", classes=outputs, features=features).double()
    assert count(net) == (features + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * outputs
    x = torch.randn(3, features, dtype=torch.float64)
    *hidden, head = [m for m in net if isinstance(m, nn.Linear)]
    z = x
    for layer in hidden:
        z = (z @ layer.weight.T + layer.bias).clamp(min=0)
    assert torch.allclose(net(x), z @ head.weight.T + head.bias)


def test_an_mlp_starts_with_the_variances_of_he_and_lecun_and_takes_images() -> None:
    torch.manual_seed(0)
    net = build("mlp-400x2", classes=400, channels=1, size=20)
    assert net(torch.zeros(2, 1, 20, 20)).shape == (2, 400)
    stds = [float(m.weight.detach().std()) for m in net if isinstance(m, nn.Linear)]
    assert stds == pytest.approx([math.sqrt(2 / 400), math.sqrt(2 / 400), 1 / 20], rel=0.02)


def test_a_gpt_is_the_published_network_restated_in_float64() -> None:
    torch.manual_seed(0)
    net = build("gpt-64x2", classes=11, vocabulary=11, length=7).double()
    w = {k: v.detach() + 0.01 * torch.randn_like(v) for k, v in net.state_dict().items()}  # biases too
    net.load_state_dict(w)
    tokens = torch.randint(11, (3, 7))

    def normal(t: Tensor, name: str) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(t: Tensor, name: str) -> Tensor:
        return t @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["tokens.weight"][tokens] + w["positions.weight"]
    for b in ("blocks.0", "blocks.1"):
        qkv = linear(normal(x, f"{b}.norm1"), f"{b}.attention.qkv")
        heads = []
        for h in range(2):
            q, k, v = (qkv[..., 64 * i + 32 * h : 64 * i + 32 * (h + 1)] for i in range(3))
            scores = q @ k.transpose(1, 2) / math.sqrt(32)
            scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + linear(torch.cat(heads, -1), f"{b}.attention.out")
        hidden = linear(normal(x, f"{b}.norm2"), f"{b}.dense.0")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{b}.dense.2")
    assert torch.allclose(net(tokens), normal(x, "norm") @ w["tokens.weight"].T, atol=1e-10)


def test_a_gpt_sees_no_later_token_and_has_about_the_size_of_its_name() -> None:
    net = build("gpt-tiny", classes=97, vocabulary=97, length=16)
    tokens = torch.randint(97, (2, 16))
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 97
    before, after = net(tokens), net(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:])
    assert net(tokens[:, :5]).shape == (2, 5, 97)
    before.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    one = build("gpt-1m", classes=97, vocabulary=97, length=128)
    for model, (v, t, w, d) in ((net, (97, 16, 64, 2)), (one, (97, 128, 128, 5))):
        assert count(model) == (v + t) * w + d * (12 * w * w + 13 * w) + 2 * w
    assert 0.9e5 < count(net) < 1.2e5 and 0.9e6 < count(one) < 1.1e6


def test_a_gpt_starts_as_published_and_predicts_nothing() -> None:
    torch.manual_seed(0)
    net = build("gpt-1m", classes=97, vocabulary=97, length=128)
    for name, p in net.named_parameters():
        if name.endswith(("attention.out.weight", "dense.2.weight")):
            assert float(p.detach().std()) == pytest.approx(0.02 / math.sqrt(10), rel=0.05)
        elif p.ndim > 1:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.05)
        else:
            assert torch.equal(p, torch.full_like(p, not name.endswith("bias")))
    loss = nn.functional.cross_entropy(
        net(torch.randint(97, (4, 128))).transpose(1, 2), torch.randint(97, (4, 128))
    )
    assert float(loss.detach()) == pytest.approx(math.log(97), rel=0.02)


@pytest.mark.parametrize("size", [4, 9, 32])
def test_a_u_net_gives_one_output_per_pixel_and_class_for_any_size(size: int) -> None:
    net = build("unet-small", classes=3, channels=1, size=size)
    out = net(torch.randn(2, 1, size, size))
    assert out.shape == (2, 3, size, size)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert count(build("unet-small", classes=2, channels=3, size=size)) == 118_610


@pytest.mark.parametrize(
    ("name", "classes", "inputs", "message"),
    [
        (
            "gpt-tiny",
            10,
            {"channels": 3, "size": 32},
            "gpt-tiny takes text, and the data are images; choose simple",
        ),
        ("resnet18", 10, {"features": 4}, "resnet18 takes images, and the data are a table; choose mlp"),
        ("torchvision/resnet18", 10, {"features": 4}, "takes images, and the data are a table; choose mlp"),
        (
            "mlp",
            9,
            {"vocabulary": 9, "length": 4},
            "mlp takes a table or images, and the data are text; choose gpt",
        ),
        ("resnet18", 9, {}, "takes images, and the data are neither images, a table of floats nor text; choose a"),
        ("gpt-tiny", 3, {"vocabulary": 9, "length": 4}, "predicts the next of 9 tokens, and the data have 3"),
        ("gpt-40x2", 9, {"vocabulary": 9, "length": 4}, "no multiple of 32; write gpt-32x2"),
        (
            "unet-small",
            3,
            {"channels": 3, "size": 8, "task": "classification"},
            "one output for each pixel, and the",
        ),
        (
            "resnet18",
            3,
            {"channels": 3, "size": 8, "task": "segmentation"},
            "for each image, .*; choose unet-small",
        ),
        ("resnet18", 3, {"channels": 3}, "takes images, and the data are images that are not square"),
        ("mlp-0x2", 9, {"features": 4}, "unknown model 'mlp-0x2'; did you mean 'mlp'"),
    ],
)
def test_networks_of_other_data_are_refused_in_one_line(name, classes, inputs, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(name, classes=classes, **inputs)
    assert "\n" not in str(caught.value)
