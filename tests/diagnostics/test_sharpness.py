"""Sharpness against its closed forms on a quadratic, and on a small network against explicit arithmetic."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from support.bowl import Point, bowl, curved
from support.small import small_batch, small_net

from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.sharpness import average_sharpness, worst_case_sharpness
from steppe.errors import InputError

W = torch.tensor([0.7, -1.3, 0.4, 2.0], dtype=torch.float64)


def test_one_step_is_the_closed_form_of_a_quadratic():
    h = curved(4)
    g = h @ W
    u = g / g.norm()
    for rho in (0.05, 0.8):
        expected = rho * g.norm() + rho**2 / 2 * (u @ h @ u)
        assert worst_case_sharpness(bowl(h, W[:2], W[2:]), rho) == pytest.approx(float(expected), rel=1e-12)


def test_many_steps_reach_the_highest_point_of_the_ball():
    h = curved(4)
    g, rho = h @ W, 1.5
    values, vectors = torch.linalg.eigh(h)
    c = vectors.T @ g

    def length(mu: float) -> float:
        return float(((c / (mu - values)) ** 2).sum()) - rho**2

    # on the sphere the maximiser solves (mu I - H) e = g with mu above the largest eigenvalue
    mu = brentq(length, float(values[-1]) + 1e-9, float(values[-1]) + 1e3)
    e = vectors @ (c / (mu - values))
    expected = float(g @ e + e @ h @ e / 2)
    one, many = (worst_case_sharpness(bowl(h, W), rho, steps=n) for n in (1, 60))
    assert one < expected - 1e-3
    assert many == pytest.approx(expected, rel=1e-6)
    assert worst_case_sharpness(bowl(curved(4), torch.zeros(4, dtype=torch.float64)), 0.1, steps=3) == 0.0


def test_more_steps_never_lower_the_maximum():
    # a loss with many maxima, which an ascent passes
    surface = LossSurface(Point(W), [small_batch()], lambda z, y: torch.sin(5 * z).sum(1).mean())
    rises = [worst_case_sharpness(surface, 1.0, steps=n) for n in range(1, 9)]
    assert all(a <= b for a, b in pairwise(rises)) and rises[0] < rises[-1]


def test_adaptive_sharpness_is_the_closed_form_and_invariant_under_rescaling():
    h, rho = curved(4), 0.3
    g = h @ W
    e = rho * W**2 * g / (W * g).norm()
    expected = float(g @ e + e @ h @ e / 2)
    assert worst_case_sharpness(bowl(h, W), rho, ball="adaptive") == pytest.approx(expected, rel=1e-10)
    s = torch.tensor([3.0, 0.2, 1.5, 7.0], dtype=torch.float64)
    rescaled = bowl(h / s[:, None] / s[None, :], W * s)
    for steps in (1, 4):
        a, b = (worst_case_sharpness(s, rho, steps=steps, ball="adaptive") for s in (bowl(h, W), rescaled))
        assert a == pytest.approx(b, rel=1e-9)
    assert worst_case_sharpness(rescaled, rho) != pytest.approx(worst_case_sharpness(bowl(h, W), rho), rel=1e-2)


def test_m_sharpness_is_the_mean_over_groups_of_their_own_ascents():
    net = small_net(dtype=torch.float64).eval()
    x, y = small_batch(count=10, dtype=torch.float64)
    params, rho = list(net.parameters()), 0.05
    total = 0.0
    for a, b in ((0, 4), (4, 8), (8, 10)):
        before = F.cross_entropy(net(x[a:b]), y[a:b])
        grads = torch.autograd.grad(before, params)
        length = torch.sqrt(sum((g**2).sum() for g in grads))
        moved = {n: p + rho * g / length for (n, p), g in zip(net.named_parameters(), grads, strict=True)}
        after = F.cross_entropy(torch.func.functional_call(net, moved, (x[a:b],)), y[a:b])
        total += float((after - before).detach()) * (b - a)
    # the groups need not be the loader's batches
    surface = LossSurface(net, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert worst_case_sharpness(surface, rho, m=4) == pytest.approx(total / 10, rel=1e-9)
    assert worst_case_sharpness(surface, rho, m=4) > worst_case_sharpness(surface, rho)


@pytest.mark.parametrize("noise", ["isotropic", "filter"])
def test_average_sharpness_is_half_the_trace_within_its_error(noise):
    h, sigma = curved(6), 0.2
    w = (
        torch.tensor([[0.7, -1.3], [0.4, 2.0]], dtype=torch.float64),
        torch.tensor([1.0, -3.0], dtype=torch.float64),
    )
    scale = torch.ones(6, dtype=torch.float64)
    if noise == "filter":
        rows, bias = w[0].norm(dim=1), w[1].norm()
        scale = torch.stack([rows[0], rows[0], rows[1], rows[1], bias, bias])
    expected = float(sigma**2 / 2 * (torch.diag(h) * scale**2).sum())
    result = average_sharpness(bowl(h, *w), sigma, noise=noise, pairs=400)
    assert result.n == 400
    assert result.error < 0.1 * expected
    assert abs(result.mean - expected) < 3 * result.error
    # a large gradient cancels within each pair
    tilted = average_sharpness(
        bowl(h, *w, linear=1e3 * torch.ones(6, dtype=torch.float64)), sigma, noise=noise, pairs=400
    )
    assert tilted.mean == pytest.approx(result.mean, rel=1e-6)


def test_the_standard_error_is_that_of_independent_repeats():
    h = curved(4)
    estimates = [average_sharpness(bowl(h, W), 0.3, pairs=20, seed=s) for s in range(60)]
    means = torch.tensor([e.mean for e in estimates])
    assert float(means.std()) == pytest.approx(sum(e.error for e in estimates) / 60, rel=0.3)
    assert average_sharpness(bowl(h, W), 0.3, pairs=1).error is None
    assert average_sharpness(bowl(h, W), 0.3, seed=5) == average_sharpness(bowl(h, W), 0.3, seed=5)


def test_measuring_changes_no_state():
    net = small_net()
    net[3].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    state = torch.get_rng_state()
    surface = LossSurface(net, [small_batch()])
    worst_case_sharpness(surface, 0.1, steps=2)
    average_sharpness(surface, 0.1, noise="filter", pairs=2)
    surface.hvp([torch.ones_like(p) for p in surface.params])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: worst_case_sharpness(s, -1), "rho is -1; give a radius"),
        (lambda s: worst_case_sharpness(s, float("nan")), "rho is nan"),
        (lambda s: worst_case_sharpness(s, steps=0), "steps is 0; give at least 1"),
        (lambda s: worst_case_sharpness(s, m=0), "m is 0; give at least 1"),
        (lambda s: worst_case_sharpness(s, ball="square"), "ball is 'square'; choose"),
        (lambda s: average_sharpness(s, -0.1), "sigma is -0.1"),
        (lambda s: average_sharpness(s, pairs=0), "pairs is 0"),
        (lambda s: average_sharpness(s, noise="pink"), "noise is 'pink'; choose"),
        (lambda s: LossSurface(s.net, []), "data has no batch"),
        (lambda s: LossSurface(torch.nn.ReLU(), [small_batch()]), "no trainable parameter"),
        (lambda s: LossSurface(s.net, [small_batch()], loss="own"), "loss is 'own'"),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call(bowl(curved(4), W))


def test_a_loss_that_becomes_nan_within_the_ball_is_infinitely_sharp():
    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        value = F.cross_entropy(z, y)
        return torch.where(value > limit, torch.nan, 1.0) * value

    torch.manual_seed(0)
    net, x, y = torch.nn.Linear(5, 3), torch.randn(30, 5), torch.arange(30) % 3
    limit = F.cross_entropy(net(x), y).item() + 1e-6
    for steps in (1, 3):
        assert worst_case_sharpness(LossSurface(net, [(x, y)], loss), steps=steps) == float("inf")
