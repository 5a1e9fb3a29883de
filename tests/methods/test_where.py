"""Perturbations of some parameters: norms, kernels, biases, the last layers, names."""

import pytest
import torch
from support.small import BARE, close, indexed, same, small_net
from torch import nn

import steppe
from steppe.core.method import Perturbing
from steppe.core.numerics.selection import select
from steppe.core.param_groups import owners

PERTURBING = [n for n in BARE if isinstance(m := steppe.make(n), Perturbing) and m.where == "all"]
SIZES = {"lpf-sgd": "gamma", "rwp": "gamma", "arwp": "gamma"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters())))


def test_sam_on_is_sam_in_the_space_of_the_norms():
    model, reference, x, y = net(), net(), torch.randn(7, 6).double(), torch.arange(7) % 3
    step = steppe.SAM(0.4, where="norm").bind(model, torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(3):
        step(x, y)
        norms = [reference[1].weight, reference[1].bias]
        g = torch.autograd.grad(nn.functional.cross_entropy(reference(x), y), norms)
        length = torch.sqrt(g[0].square().sum() + g[1].square().sum())
        before = [p.detach().clone() for p in reference.parameters()]
        for p, t in zip(norms, g, strict=True):
            p.data += 0.4 * t / length
        g = gradients(reference, x, y)
        for p, w, t in zip(reference.parameters(), before, g, strict=True):
            p.data.copy_(w - 0.1 * t)
    assert close(model, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", PERTURBING)
def test_where_is_a_radius_of_zero_for_all_others(name):
    size = SIZES.get(name, "rho")
    value = getattr(steppe.make(name), size)
    models = [small_net(), small_net()]
    chosen = {k for k, _ in models[0].named_parameters() if "bias" in k}
    steps = []
    for model, settings in zip(models, ({"where": "bias"}, {}), strict=True):
        groups = [
            {"params": [p], **({} if settings or k in chosen else {size: 0.0})}
            for k, p in model.named_parameters()
        ]
        settings = settings | ({"gamma": 0.0} if name == "r-sam" else {})
        settings |= {"beta": 1.0} if name == "esam" else {}
        steps.append(steppe.make(name, **settings).bind(model, torch.optim.SGD(groups, 0.1, momentum=0.9)))
    for k in range(4):
        for step in steps:
            torch.manual_seed(k)
            step(indexed(k))
    assert same(*models), (name, value)


def test_the_first_pass_has_no_gradient_of_what_is_not_perturbed():
    model, counts = net(), []
    model[0].weight.register_hook(lambda g: counts.append(1))
    step = steppe.SAM(where="norm").bind(model, torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(4):  # the first graph is whole, and is inspected
        step(torch.randn(7, 6).double(), torch.arange(7) % 3)
    assert len(counts) == 5


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.ModuleList([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)])
        self.layer40, self.attn = nn.Linear(2, 2), nn.MultiheadAttention(2, 1)
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("norm", ["layer4.1.weight", "layer4.1.bias"]),
        ("layer4", ["layer4.0.weight", "layer4.0.bias", "layer4.1.weight", "layer4.1.bias"]),
        ("*.out_proj.*", ["attn.out_proj.weight", "attn.out_proj.bias"]),
        ("last:1", ["head.weight", "head.bias"]),
        ("last:2", ["attn.out_proj.weight", "attn.out_proj.bias", "head.weight", "head.bias"]),
        (
            "kernels",
            ["layer4.0.weight", "layer40.weight", "attn.in_proj_weight", "attn.out_proj.weight", "head.weight"],
        ),
        (
            "bias",
            [
                "layer4.0.bias",
                "layer4.1.bias",
                "layer40.bias",
                "attn.in_proj_bias",
                "attn.out_proj.bias",
                "head.bias",
            ],
        ),
    ],
)
def test_what_each_selection_chooses(where, names):
    model = Named()
    params = list(model.parameters())
    mask = select(model, params, owners(model, params), where)
    assert [k for (k, _), chosen in zip(model.named_parameters(), mask, strict=True) if chosen] == names


def test_a_selection_of_nothing_and_an_impossible_one_are_refused():
    model = small_net()
    for method in ("sam:where=layer9", "arwp:where=layer9", "sam:where=layer9,start=3+gc"):
        with pytest.raises(steppe.InputError, match="where is 'layer9' and no trainable parameter is that"):
            steppe.parse(method).bind(model, torch.optim.SGD(model.parameters(), 0.1))
    for where in ("last:0", "last:x", "base", " "):
        with pytest.raises(steppe.InputError, match="where is "):
            steppe.SAM(where=where)
    assert steppe.parse("sam:where=last:2,rho=0.1") == steppe.SAM(0.1, where="last:2")
    assert "where" not in steppe.SAM().to_dict()
