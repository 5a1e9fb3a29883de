"""Settings and layers that the restatements do not have, against formulas of one line."""

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


def kl_gradient(clean: Tensor, z: Tensor, direction: str) -> Tensor:
    """The gradient of KL with respect to the teacher's logits z, by hand."""
    p, q = (torch.exp(t) / torch.exp(t).sum() for t in (clean, z))
    if direction == "pre-aux":
        return q - p
    return q * (torch.log(q / p) - (q * torch.log(q / p)).sum())


@pytest.mark.parametrize("direction", ["pre-aux", "aux-pre"])
@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("updates", [1, 2])
def test_sadt_v1_distils_the_noisy_teacher_on_a_quadratic(direction: str, weight: float, updates: int):
    net = Point()
    method = steppe.SADT(variant=1, sigma=0.3, direction=direction, weight=weight, updates=updates)
    optimizer = torch.optim.SGD(net.parameters(), LR)
    step = method.bind(net, optimizer, loss=lambda z, y: 0.5 * ((z @ A) * z).sum(1).mean(), seed=3)
    g = torch.Generator()
    g.set_state(step.runtime.rng.get_state())
    step(torch.zeros(4, 1), torch.zeros(4))
    clean = A @ W0
    w = W0 - LR * clean if updates == 2 else W0
    distilled = kl_gradient(W0, w + 0.3 * torch.randn(3, generator=g, dtype=torch.float64), direction)
    assert torch.allclose(net.w, w - LR * (clean + weight * distilled), rtol=1e-12, atol=1e-14)


def test_gc_leaves_units_with_one_weight_their_gradient():
    net = nn.Linear(1, 3).double()
    w = net.weight.detach().clone()
    step = steppe.GC().bind(net, torch.optim.SGD(net.parameters(), LR), loss=lambda z, y: z.sum())
    step(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2))
    assert torch.allclose(net.weight, w - LR * 2, rtol=1e-12)


def test_agc_clips_the_head_only_with_clip_head():
    for clip_head in (False, True):
        net = nn.Linear(4, 3).double()
        w = net.weight.detach().clone()
        method = steppe.AGC(clipping=0.01, clip_head=clip_head)
        step = method.bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=lambda z, y: 100 * (z**2).sum())
        step(torch.randn(5, 4, dtype=torch.float64), torch.zeros(5))
        ratio = (net.weight.detach() - w).norm(dim=1) / w.norm(dim=1)
        assert bool((ratio <= 0.01 + 1e-12).all()) == clip_head
