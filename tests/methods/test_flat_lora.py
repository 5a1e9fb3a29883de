"""Flat-LoRA perturbs the frozen weights below adapters, by PEFT or by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

import steppe

LR, RHO = 0.1, 0.3
X = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
Y = torch.arange(8) % 3


class LoRALinear(nn.Linear):
    """A linear layer with an adapter, as loralib writes it."""

    def __init__(self, inputs: int, outputs: int, rank: int, scaling: float):
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = (
            nn.Parameter(torch.randn(rank, inputs)),
            nn.Parameter(torch.randn(outputs, rank)),
        )
        self.scaling, self.merged = scaling, False
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)


def by_hand() -> nn.Module:
    return nn.Sequential(LoRALinear(4, 6, 2, 1.5), nn.Tanh(), nn.Linear(6, 3))


def by_peft() -> nn.Module:
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    config = peft.LoraConfig(
        target_modules=["0"], r=2, lora_alpha=3, init_lora_weights=False, modules_to_save=["2"]
    )
    return peft.get_peft_model(net, config)


def parts(net: nn.Module) -> tuple[Tensor, Tensor, Tensor, float]:
    if isinstance(net, nn.Sequential):
        return net[0].weight, net[0].lora_A, net[0].lora_B, 1.5
    layer = net.base_model.model[0]
    return layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight, 1.5


@pytest.mark.parametrize("make", [by_hand, pytest.param(by_peft, marks=pytest.mark.slow)])
def test_the_noise_is_on_the_frozen_weight_in_the_size_of_the_full_one(make):
    torch.manual_seed(0)
    net = make().double()
    reference = copy.deepcopy(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], LR)
    step = steppe.FlatLoRA(rho=RHO).bind(net, optimizer, seed=3)
    noise = torch.Generator()
    noise.set_state(step.runtime.rng.get_state())
    before = parts(net)[0].clone()
    for _ in range(3):
        step(X, Y)
        weight, a, b, s = parts(reference)
        with torch.no_grad():
            whole = weight + s * b @ a
            size = RHO * torch.linalg.vector_norm(whole, dim=1, keepdim=True) / 2  # 4 inputs
            draw = torch.randn(weight.shape, generator=noise, dtype=weight.dtype)
            weight += size * draw
        trained = [p for p in reference.parameters() if p.requires_grad]
        grads = torch.autograd.grad(nn.functional.cross_entropy(reference(X), Y), trained)
        with torch.no_grad():
            weight.copy_(before)
            for p, g in zip(trained, grads, strict=True):
                p -= LR * g
    assert torch.equal(parts(net)[0], before)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-13)


def test_a_step_that_fails_leaves_the_frozen_weight_and_rho_of_a_group_counts():
    torch.manual_seed(0)
    net = by_hand().double()
    before = copy.deepcopy(net.state_dict())
    groups = [
        {"params": [net[0].lora_A, net[0].lora_B], "rho": 0.0},
        {"params": [net[0].bias, *net[2].parameters()]},
    ]
    plain = copy.deepcopy(net)
    step = steppe.FlatLoRA(rho=RHO).bind(net, torch.optim.SGD(groups, LR))
    assert step(X * float("nan"), Y).skipped
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    own = steppe.Plain().bind(plain, torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], LR))
    for _ in range(2):
        step(X, Y)
        own(X, Y)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
