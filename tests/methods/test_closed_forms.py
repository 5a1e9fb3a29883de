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
    step = method.bind(
        net, optimizer, loss=lambda z, y: 0.5 * ((z @ A) * z).sum(1).mean(), outputs="classes", seed=3
    )
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


@pytest.mark.parametrize("name", ["gc", "agc"])
def test_a_grouped_transposed_convolution_is_treated_as_its_groups_apart(name: str):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 4, 3, groups=2, bias=False).double()
    halves = nn.ModuleList([nn.ConvTranspose2d(2, 2, 3, bias=False).double() for _ in range(2)])
    x, before = torch.randn(5, 4, 6, 6, dtype=torch.float64), layer.weight.detach().clone()
    for half, w in zip(halves, before.chunk(2), strict=True):
        half.weight.data.copy_(w)

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves = halves

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([h(t) for h, t in zip(self.halves, x.chunk(2, 1), strict=True)], 1)

    for net in (layer, Apart()):
        step = steppe.make(name).bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=lambda z, y: (z**3).mean())
        step(x, torch.zeros(5))
    assert torch.allclose(layer.weight, torch.cat([h.weight for h in halves]), rtol=1e-12, atol=1e-15)
    assert not torch.equal(layer.weight, before)


def test_agc_clips_each_row_of_an_embedding_and_gc_leaves_it():
    """As timm's unitwise norm; rows without a gradient do not raise the others' limit."""
    for layer in (nn.Embedding(6, 3), nn.EmbeddingBag(6, 3)):
        net = layer.double()
        w, x = net.weight.detach().clone(), torch.tensor([[0], [1]])
        for method in (steppe.AGC(clipping=0.01), steppe.GC()):
            net.weight.data.copy_(w)
            net.zero_grad()
            loss = lambda z, y: 100 * (z**2).sum()  # noqa: E731
            method.bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=loss)(x, torch.zeros(2))
            moved = (w - net.weight.detach()).norm(dim=1)
            expected = 0.01 * w.norm(dim=1) if isinstance(method, steppe.AGC) else 200 * w.norm(dim=1)
            assert torch.allclose(moved, torch.where(torch.arange(6) < 2, expected, 0.0), rtol=1e-12)


def test_arwp_s_noise_sums_squared_gradients_over_filters_and_not_over_vectors():
    """As nblt/mARWP: ``fisher.view(sh[0], -1).sum(1)``, which for a vector is the vector itself."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double()
    step = steppe.ARWP(eta=50.0).bind(
        net, torch.optim.SGD(net.parameters(), 0.0), loss=lambda z, y: (z**2 * y).sum()
    )
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for _ in range(2):
        step(x, y)
    fisher = [v.clone() for v in step.state.buffers()]
    g = torch.Generator()
    g.set_state(step.runtime.rng.get_state())
    weights = []
    step.runtime.objective = lambda batch: (
        weights.append([p.detach().clone() for p in net.parameters()]) or (step.runtime.supervised(batch))
    )
    step(x, y)
    for p, f, w, noisy in zip(net.parameters(), fisher, *weights, strict=True):
        f = f.reshape(len(p), -1).sum(1).reshape(-1, *[1] * (p.ndim - 1))
        size = w.norm(dim=1, keepdim=True) if p.ndim > 1 else w.norm()
        drawn = torch.randn(p.shape, generator=g, dtype=torch.float64)
        assert torch.allclose(noisy - w, drawn * 0.015 * size / (1 + 50 * f).sqrt(), rtol=1e-6, atol=1e-12)
