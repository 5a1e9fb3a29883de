"""Hessian-vector products, eigenvalues, trace and density against the dense Hessian."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.bowl import bowl, curved
from support.small import small_batch, small_net
from torch import nn

from steppe.diagnostics.hessian import density, eigenvalues, trace
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError


@cache
def network() -> tuple[LossSurface, np.ndarray]:
    """A small network with convolution and BatchNorm, trained a little, and its dense Hessian."""
    net = small_net(dtype=torch.float64, dropout=0.3)
    x, y = small_batch(count=16, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    shapes = [(n, p.shape, p.numel()) for n, p in net.named_parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(flat, [size for *_, size in shapes])
        named = {n: t.view(s) for (n, s, _), t in zip(shapes, pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, named, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    whole = torch.func.hessian(loss)(flat).numpy()
    net.train()
    return LossSurface(net, [(x[:5], y[:5]), (x[5:], y[5:])]), whole


def test_products_and_trace_are_those_of_the_dense_hessian():
    surface, whole = network()
    v = torch.randn(len(whole), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pieces = torch.split(v, [p.numel() for p in surface.params])
    result = surface.hvp([t.view(p.shape) for t, p in zip(pieces, surface.params, strict=True)])
    joined = torch.cat([t.reshape(-1) for t in result]).numpy()
    np.testing.assert_allclose(joined, whole @ v.numpy(), rtol=1e-9, atol=1e-12)
    surface, whole = network()
    result = trace(surface, probes=100)
    assert result.error < 0.1 * abs(np.trace(whole))
    assert abs(result.mean - np.trace(whole)) < 3 * result.error


def test_top_eigenvalues_are_those_of_the_dense_hessian_within_their_residuals():
    surface, whole = network()
    expected = np.linalg.eigvalsh(whole)[::-1][:3]
    result = eigenvalues(surface, 3, tolerance=1e-6)
    np.testing.assert_allclose(result.values, expected, rtol=1e-3)
    for value, residual, true in zip(result.values, result.residuals, expected, strict=True):
        assert abs(value - true) <= residual + 1e-12
    surface, whole = network()
    result = eigenvalues(surface, 3, tolerance=1e-14, products=1)
    expected = np.linalg.eigvalsh(whole)[::-1]
    assert len(result.values) == 3
    assert max(result.residuals) > 1e-10
    for value, residual in zip(result.values, result.residuals, strict=True):
        assert np.abs(expected - value).min() <= residual + 1e-12


def test_the_density_has_the_moments_of_its_vectors_and_integrates_to_one():
    surface, whole = network()
    v = np.random.default_rng(7).standard_normal(len(whole))
    v /= np.linalg.norm(v)
    result = density(surface, steps=12, probes=1, seed=7)
    assert result.weights.sum() == pytest.approx(1)
    power = v.copy()
    for order in range(1, 2 * 12):
        power = whole @ power
        assert (result.weights * result.nodes**order).sum() == pytest.approx(v @ power, rel=1e-7), order
    assert result.nodes[-1] <= np.linalg.eigvalsh(whole)[-1] + 1e-9
    result = density(bowl(curved(30), torch.ones(30, dtype=torch.float64)), steps=30, probes=2)
    at = np.linspace(-3, 8, 4001)
    assert np.trapezoid(result.smooth(at, 0.1), at) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [5, 80])
def test_eigenvalues_and_trace_of_a_quadratic_are_its_matrix_s(size):
    h = curved(size)
    w = torch.ones(size, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(h).flip(0)[:2].tolist()
    assert eigenvalues(bowl(h, w), 2, tolerance=1e-8).values == pytest.approx(expected, rel=1e-6)
    assert trace(bowl(torch.diag(torch.diag(h)), w), probes=1).mean == pytest.approx(float(h.trace()))


def test_few_distinct_eigenvalues_are_exact():
    h = torch.diag(torch.tensor([2.0, 2.0, 2.0, 5.0, 5.0, 0.0], dtype=torch.float64))
    result = density(bowl(h, torch.ones(6, dtype=torch.float64)), steps=20, probes=1)
    np.testing.assert_allclose(result.nodes, [0, 2, 5], atol=1e-9)
    assert eigenvalues(bowl(torch.zeros(3, 3), torch.ones(3), linear=torch.ones(3)), 1).values == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: eigenvalues(s, 0), "k is 0; give 1 to 4"),
        (lambda s: eigenvalues(s, 5), "k is 5"),
        (lambda s: trace(s, 0), "probes is 0"),
        (lambda s: density(s, 0), "steps is 0"),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call(bowl(curved(4), torch.ones(4, dtype=torch.float64)))


class Attention(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        torch.manual_seed(0)
        self.fused, self.qkv, self.out = fused, nn.Linear(6, 24), nn.Linear(8, 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        plain = torch.softmax(q @ k.mT / 2, -1) @ v
        z = F.scaled_dot_product_attention(q, k, v) if self.fused else plain
        return self.out(z.transpose(1, 2).flatten(2).mean(1))


def test_attention_has_the_second_derivatives_of_its_formula():
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 6).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    fused, plain = (LossSurface(Attention(fused), [(x, y)]) for fused in (True, False))
    assert eigenvalues(fused, 2).values == pytest.approx(eigenvalues(plain, 2).values, rel=1e-6)
    assert trace(fused, 3).mean == pytest.approx(trace(plain, 3).mean, rel=1e-9)


def test_a_network_without_second_derivatives_is_refused():
    net = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 3))
    surface = LossSurface(net, [(torch.randint(0, 20, (6, 5)), torch.tensor([0, 1, 2, 0, 1, 2]))])
    with pytest.raises(InputError, match=r"no Hessian \(.*_embedding_bag_backward.*\); replace that layer"):
        trace(surface, 1)


@pytest.mark.parametrize("features", [4, 100])  # solved densely and not
def test_a_loss_that_is_linear_in_the_weights_has_no_curvature(features):
    torch.manual_seed(0)
    surface = LossSurface(nn.Linear(features, 1), [(torch.randn(40, features), torch.randn(40, 1))], F.l1_loss)
    found = eigenvalues(surface, 2)
    assert (found.values, found.residuals) == ([0.0, 0.0], [0.0, 0.0])
    assert trace(surface, 2).mean == 0


def test_second_derivatives_that_are_not_finite_are_one_line():
    net = nn.Linear(100, 2)
    torch.nn.init.constant_(net.weight, torch.nan)
    surface = LossSurface(net, [(torch.randn(4, 100), torch.tensor([0, 1, 0, 1]))])
    for measure in (eigenvalues, density, trace):
        with pytest.raises(InputError, match="second derivatives that are not finite"):
            measure(surface)


def test_every_product_is_counted(monkeypatch):
    surface, made = LossSurface(*_large()), []
    product = surface.hvp
    monkeypatch.setattr(surface, "hvp", lambda v: made.append(v) or product(v))
    assert eigenvalues(surface, 2, products=1, tolerance=1e-12).products == len(made)


def _large() -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    return nn.Linear(40, 3), [(torch.randn(20, 40), torch.arange(20) % 3)]
