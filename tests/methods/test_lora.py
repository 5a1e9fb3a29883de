"""Flat-LoRA and Bi-LoRA perturb the frozen weights below adapters, by PEFT or by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

import steppe

LR, RHO, SMALL = 0.1, 0.3, 0.02
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


@pytest.mark.parametrize("method", [steppe.FlatLoRA(), steppe.BiLoRA()])
def test_quantized_weights_below_all_adapters_are_refused_and_some_are_left_out(method):
    class Quantized(LoRALinear):
        def __init__(self, inputs: int, outputs: int):
            super().__init__(inputs, outputs, 2, 1.5)
            self.weight = nn.Parameter(torch.ones(outputs, inputs, dtype=torch.int8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T.to(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)

    for layers, refused in (((Quantized(4, 3),), True), ((LoRALinear(4, 4, 2, 1.5), Quantized(4, 3)), False)):
        net = nn.Sequential(*layers)
        step = method.bind(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], LR))
        if refused:
            with pytest.raises(steppe.InputError, match="below all adapters are quantized"):
                step(X.float(), Y)
        else:
            step(X.float(), Y)


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


@pytest.mark.parametrize("make", [by_hand, pytest.param(by_peft, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_auxiliary_adapters_ascend_on_the_frozen_weight_in_the_same_pass(make, kind):
    torch.manual_seed(0)
    net = make().double()
    reference, whole = copy.deepcopy(net), copy.deepcopy(net)
    trained = [[p for p in n.parameters() if p.requires_grad] for n in (net, reference, whole)]
    step = steppe.BiLoRA(rho=SMALL, rank=2).bind(net, kind(trained[0], LR), seed=3, microbatch=3)
    other, noise = kind(trained[1], LR), torch.Generator()
    noise.set_state(step.runtime.rng.get_state())
    in_one = steppe.BiLoRA(rho=SMALL, rank=2).bind(whole, kind(trained[2], LR), seed=3)
    weight = parts(reference)[0]
    before = weight.clone()
    a2, b2 = torch.randn(2, 4, generator=noise, dtype=weight.dtype) / 2, torch.zeros(6, 2, dtype=weight.dtype)
    sizes = []
    for _ in range(4):
        step(X, Y), in_one(X, Y)
        with torch.no_grad():
            weight += b2 @ a2
        weight.requires_grad_()
        loss = nn.functional.cross_entropy(reference(X), Y)
        *grads, full = torch.autograd.grad(loss, [*trained[1], weight])
        weight.requires_grad_(False).copy_(before)
        for p, g in zip(trained[1], grads, strict=True):
            p.grad = g
        other.step()
        up, across = full @ a2.T, b2.T @ full
        if kind is torch.optim.AdamW:
            up, across = (g / (g.abs() + 1e-8) for g in (up, across))
        b2, a2 = b2 + LR * up, a2 + LR * across
        sizes.append(float((b2 @ a2).norm()))
        shrink = min(1.0, SMALL / sizes[-1]) ** 0.5
        b2, a2 = b2 * shrink, a2 * shrink
    assert max(sizes) > SMALL  # it was clipped
    assert torch.equal(parts(net)[0], before) and not parts(net)[0].requires_grad and parts(net)[0].grad is None
    for p, q, r in zip(net.parameters(), reference.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12) and torch.allclose(p, r, rtol=1e-9, atol=1e-12)


def test_auxiliary_adapters_are_saved_and_not_deployed():
    torch.manual_seed(0)
    net = by_hand().double()
    saved = copy.deepcopy(net)
    names = list(net.state_dict())

    def bound(model):
        trained = [p for p in model.parameters() if p.requires_grad]
        return steppe.BiLoRA(rho=RHO).bind(model, torch.optim.SGD(trained, LR), seed=1)

    step = bound(net)
    for _ in range(3):
        step(X, Y)
    again = bound(saved)
    saved.load_state_dict(net.state_dict())
    again.load_state_dict(step.state_dict())
    step(X, Y), again(X, Y)
    assert list(net.state_dict()) == names
    for p, q in zip(net.parameters(), saved.parameters(), strict=True):
        assert torch.equal(p, q)
    trained = [p for p in net.parameters() if p.requires_grad]
    grouped = steppe.BiLoRA(rho=RHO).bind(net, torch.optim.SGD(trained, LR), m=4)
    with pytest.raises(steppe.InputError, match="m needs a method that remembers no gradients"):
        grouped(X, Y)
