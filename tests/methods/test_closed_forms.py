"""Methods on a quadratic, where each step has a formula of one line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import steppe

LR = 0.05
A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
W0 = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class Point(nn.Module):
    """A network whose output for every sample is its weight vector."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(W0.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


def quadratic(z: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((z @ A) * z).sum(1).mean()


def one_step(method: steppe.Method) -> tuple[Tensor, steppe.Step, Tensor]:
    """Return the weights after one step with plain SGD, the step, and a generator's state before it."""
    net = Point()
    step = method.bind(net, torch.optim.SGD(net.parameters(), LR), loss=quadratic, seed=3)
    before = step.runtime.rng.get_state()
    out = step(torch.zeros(4, 1), torch.zeros(4))
    if not isinstance(method, steppe.RandomSAM):  # which has no clean pass
        assert near(out.loss, 0.5 * W0 @ A @ W0)
    return net.w.detach(), step, before


def noise_of(state: Tensor) -> Tensor:
    """Draw the vector that the step drew."""
    g = torch.Generator()
    g.set_state(state)
    return torch.randn(3, generator=g, dtype=torch.float64)


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_plain_descends_the_gradient():
    w, _, _ = one_step(steppe.Plain())
    assert near(w, W0 - LR * A @ W0)


def test_repeat_step_descends_it_twice():
    w, _, _ = one_step(steppe.RepeatStep())
    assert near(w, W0 - 2 * LR * A @ W0)


def test_two_step_descends_two_gradients():
    w, _, _ = one_step(steppe.TwoStep())
    inner = torch.eye(3, dtype=torch.float64) - LR * A
    assert near(w, inner @ inner @ W0)


@pytest.mark.parametrize("rho", [0.01, 0.05, 2.0])
def test_sam_takes_the_gradient_at_distance_rho(rho: float):
    w, _, _ = one_step(steppe.SAM(rho=rho))
    g = A @ W0
    assert near(w, W0 - LR * A @ (W0 + rho * g / g.norm()))


def test_random_sam_takes_the_gradient_at_distance_rho_in_the_drawn_direction():
    w, _, state = one_step(steppe.RandomSAM(rho=0.5))
    u = noise_of(state)
    assert near(w, W0 - LR * A @ (W0 + 0.5 * u / u.norm()))


def test_gc_leaves_a_vector_alone():
    w, _, _ = one_step(steppe.GC())
    assert near(w, W0 - LR * A @ W0)


@pytest.mark.parametrize("clipping", [0.01, 0.5, 100.0])
def test_agc_bounds_the_gradient_by_a_share_of_the_weights(clipping: float):
    w, _, _ = one_step(steppe.AGC(clipping=clipping))
    g = A @ W0
    g = g * min(1.0, float(clipping * W0.norm() / g.norm()))
    assert near(w, W0 - LR * g)


def softmax(z: Tensor) -> Tensor:
    return torch.exp(z) / torch.exp(z).sum()


def kl_gradient(clean: Tensor, z: Tensor, direction: str) -> Tensor:
    """The gradient of KL with respect to the teacher's logits z, by hand."""
    p, q = softmax(clean), softmax(z)
    if direction == "pre-aux":
        return q - p
    return q * (torch.log(q / p) - (q * torch.log(q / p)).sum())


@pytest.mark.parametrize("direction", ["pre-aux", "aux-pre"])
@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("updates", [1, 2])
def test_sadt_v1_matches_the_noisy_teacher(direction: str, weight: float, updates: int):
    method = steppe.SADT(variant=1, sigma=0.3, direction=direction, weight=weight, updates=updates)
    w, _, state = one_step(method)
    up = A @ W0
    w_up = W0 - LR * up if updates == 2 else W0
    aux = kl_gradient(W0, w_up + 0.3 * noise_of(state), direction)
    assert near(w, w_up - LR * (up + weight * aux))


def test_sadt_v3_matches_the_teacher_uphill():
    w, _, state = one_step(steppe.SADT(variant=3, sigma=0.3, ascent=0.2))
    up = A @ W0
    w_up = W0 - LR * up
    aux = kl_gradient(W0, w_up + 0.2 * (up + 0.3 * noise_of(state)), "pre-aux")
    assert near(w, w_up - LR * (up + aux))


class Line(nn.Module):
    """A convolution and a linear layer of one weight each: logits (b u, 0) of the input 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1, bias=False)
        self.dense = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.dense(self.conv(x).flatten(1))
        return torch.cat([z, torch.zeros_like(z)], 1)


def test_sadt_v2_has_one_teacher_noisy_in_the_convolution_and_one_in_the_dense_layer():
    """Checked on logits (a b, 0): every gradient is a line of arithmetic in a, b and the two draws."""
    net = Line().double()
    a, b = 0.7, -1.3
    nn.init.constant_(net.conv.weight, a)
    nn.init.constant_(net.dense.weight, b)
    step = steppe.SADT(variant=2, sigma=0.2).bind(net, torch.optim.SGD(net.parameters(), LR), seed=5)
    g = torch.Generator()
    g.set_state(step.runtime.rng.get_state())
    n1, n2 = (float(torch.randn(1, generator=g, dtype=torch.float64)) * 0.2 for _ in range(2))
    step(torch.ones(3, 1, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.long))

    def p(z: float) -> float:
        return 1 / (1 + torch.exp(torch.tensor(-z, dtype=torch.float64)).item())

    slope = p(a * b) - 1
    up = (slope * b, slope * a)
    a1, b1 = a - LR * up[0], b - LR * up[1]
    d1 = p((a1 + n1) * b1) - p(a * b)
    d2 = p(a1 * (b1 + n2)) - p(a * b)
    grad_a = up[0] + d1 * b1 + d2 * (b1 + n2)
    grad_b = up[1] + d1 * (a1 + n1) + d2 * a1
    assert net.conv.weight.item() == pytest.approx(a1 - LR * grad_a, rel=1e-12)
    assert net.dense.weight.item() == pytest.approx(b1 - LR * grad_b, rel=1e-12)


def test_gc_takes_the_mean_out_of_every_output_unit():
    net = nn.Linear(4, 3).double()
    x, target = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    w, b = net.weight.detach().clone(), net.bias.detach().clone()
    step = steppe.GC().bind(net, torch.optim.SGD(net.parameters(), LR), loss=lambda z, y: ((z - y) ** 2).mean())
    step(x, target)
    residual = 2 * (x @ w.T + b - target) / 18
    gw = residual.T @ x
    assert near(net.weight.detach(), w - LR * (gw - gw.mean(1, keepdim=True)))
    assert near(net.bias.detach(), b - LR * residual.sum(0))
    assert near((net.weight.detach() - w).mean(1), torch.zeros(3, dtype=torch.float64))


def test_gc_leaves_units_with_one_weight_their_gradient():
    net = nn.Linear(1, 3).double()
    w = net.weight.detach().clone()
    step = steppe.GC().bind(net, torch.optim.SGD(net.parameters(), LR), loss=lambda z, y: z.sum())
    step(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2))
    assert near(net.weight.detach(), w - LR * 2)


def test_gc_centres_transposed_convolutions_per_output_channel():
    net = nn.ConvTranspose2d(2, 3, 2).double()
    w = net.weight.detach().clone()
    step = steppe.GC().bind(net, torch.optim.SGD(net.parameters(), LR), loss=lambda z, y: (z**2).sum())
    step(torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.zeros(2))
    moved = net.weight.detach() - w
    assert moved.abs().max() > 1e-6
    assert near(moved.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64))


def test_agc_leaves_the_head_weight_alone_unless_asked():
    for clip_head in (False, True):
        net = nn.Linear(4, 3).double()
        w = net.weight.detach().clone()
        method = steppe.AGC(clipping=0.01, clip_head=clip_head)
        step = method.bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=lambda z, y: 100 * (z**2).sum())
        step(torch.randn(5, 4, dtype=torch.float64), torch.zeros(5))
        ratio = (net.weight.detach() - w).norm(dim=1) / w.norm(dim=1)
        assert bool((ratio <= 0.01 + 1e-12).all()) == clip_head
