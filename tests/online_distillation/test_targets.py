"""KDCL's linear teacher of several networks; distillation loss, ramp and diversity."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp, softmax
from support.small import close
from torch import Tensor, nn

import steppe
from steppe.core.numerics._kdcl_targets import _between, cross_entropy, linear
from steppe.core.numerics.losses import (
    distillation_loss,
    diversity,
    one_hot,
    sigmoid_rampup,
)
from steppe.core.schedules import TrainingProgress


@st.composite
def logits_and_classes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits (N, B, K) of several networks and classes as probabilities (B, K)."""
    n, b, k = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 6))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    z = draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(n, b, k, generator=g, dtype=torch.float64)
    return z, one_hot(torch.randint(0, k, (b,), generator=g), z[0])


def frank_wolfe_gap(a: Tensor, z: Tensor, y: Tensor) -> float:
    """Return a bound on how far the cross-entropy of weights a on the simplex is above the least."""
    g = torch.einsum("bk,nbk->n", torch.softmax(torch.einsum("n,nbk->bk", a, z), 1) - y, z) / z.shape[1]
    return float(a @ g - g.min())


def optimum(z: Tensor, y: Tensor) -> Tensor:
    """Return the mixture with the least cross-entropy, by SciPy's SLSQP and proved by its gap."""
    x, t = z.numpy(), y.numpy()

    def loss_and_gradient(a: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.einsum("n,nbk->bk", a, x)
        p = softmax(mixed, 1)
        loss = (logsumexp(mixed, 1) - (t * mixed).sum(1)).mean()
        return loss, np.einsum("bk,nbk->n", p - t, x) / x.shape[1]

    n = len(x)
    simplex = {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(n)}
    options = {"ftol": 1e-14, "maxiter": 500}
    start = np.full(n, 1 / n)
    a = minimize(loss_and_gradient, start, jac=True, bounds=[(0, 1)] * n, constraints=simplex, options=options).x
    assert frank_wolfe_gap(torch.from_numpy(a), z, y) < 1e-5
    return torch.einsum("n,nbk->bk", torch.from_numpy(a), z)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [2, 3, 10, 16])
@pytest.mark.parametrize("alike", [0.1, 1.0, 5.0])
def test_linear_is_the_optimum_of_its_convex_problem(count, alike, dtype):
    """Networks that agree more or less, some better than others, the last two equal."""
    g = torch.Generator().manual_seed(count)
    y = one_hot(torch.randint(0, 10, (64,), generator=g), torch.zeros(64, 10, dtype=torch.float64))
    common = torch.randn(64, 10, generator=g, dtype=torch.float64) + 1.5 * y
    z = 2 * common + alike * torch.randn(count, 64, 10, generator=g, dtype=torch.float64)
    if count > 2:
        z[-1] = z[-2]
    ours, theirs = (
        float(cross_entropy(t, y).mean()) for t in (linear(z.to(dtype), y.to(dtype)).double(), optimum(z, y))
    )
    assert ours - theirs < (1e-8 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("second", ["other", "better", "worse", "near", "opposite"])
def test_linear_of_two_networks_is_exact_without_waiting_for_a_device(scale, second):
    """Against a bounded scalar minimisation of the same convex function, and at both ends."""
    g = torch.Generator().manual_seed(int(scale))
    y = one_hot(torch.randint(0, 6, (32,), generator=g), torch.zeros(32, 6, dtype=torch.float64))
    first = scale * torch.randn(32, 6, generator=g, dtype=torch.float64)
    noise = scale * torch.randn(32, 6, generator=g, dtype=torch.float64)
    others = {
        "other": noise,
        "better": first + y,
        "worse": first - y,
        "near": first + 1e-6 * noise,
        "opposite": -first,
    }
    z = torch.stack([first, others[second]])

    def value(a: float) -> float:
        return float(cross_entropy((1 - a) * z[0] + a * z[1], y).mean())

    best = minimize_scalar(value, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).fun
    assert linear(z.to("meta"), y.to("meta")).shape == y.shape  # which has no values to read
    for target in (linear(z, y), _between(*z, y, early=False)):
        assert float(cross_entropy(target, y).mean()) - min(best, value(0.0), value(1.0)) < 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_linear_of_logits_that_are_not_finite_ends_and_of_equal_networks_is_one_of_them(seed):
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    y = one_hot(torch.arange(4), z[0])
    assert torch.allclose(linear(z[:1].expand(3, -1, -1), y), z[0], atol=1e-6)
    z[0, 0, 0] = float("nan")
    assert linear(z, y).isnan().any()
    huge = 1e3 * z.nan_to_num(0).sign()
    assert cross_entropy(linear(huge, y), y).mean() <= cross_entropy(huge, y).mean(1).min()


@settings(deadline=None, max_examples=15)
@given(logits_and_classes())
def test_linear_is_at_least_as_good_as_every_network_and_as_a_grid_of_mixtures(case):
    z, y = case
    ours = cross_entropy(linear(z, y), y).mean()
    assert ours <= cross_entropy(z, y).mean(1).min() + 1e-9
    if len(z) == 2:
        grid = torch.linspace(0, 1, 101, dtype=z.dtype)
        values = torch.stack([cross_entropy(a * z[0] + (1 - a) * z[1], y).mean() for a in grid])
        assert ours <= values.min() + 1e-9


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("target", ["naive", "linear", "min-logit", "general"])
def test_samples_without_a_class_count_in_nothing(target, count):
    """A step is that of the batch without them, also in micro-batches of which one has none."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.tensor([0, -100, 2, 1, 1, -100, 255, 1, 2])
    labelled = (y >= 0) & (y < 3)

    def loss(z: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(z, classes.where(classes < 3, -100))

    def weigh(batch: steppe.Batch) -> float:
        return float(((batch.y >= 0) & (batch.y < 3)).sum())

    nets = []
    for rows in (torch.ones(9, dtype=torch.bool), labelled):
        torch.manual_seed(0)
        method = steppe.KDCL(networks=count, target=target)
        net = method.build(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double())
        step = method.bind(net, torch.optim.SGD(net.parameters(), 0.5), loss=loss)
        for _ in range(3):
            step(x[rows], y[rows])
        nets.append(net)
    assert close(*nets, rtol=1e-8, atol=1e-12)
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.5), loss=loss, weigh=weigh)
    before = copy.deepcopy(net)
    step([steppe.Batch(x[i], y[i]) for i in (labelled, ~labelled)])
    method.bind(before, torch.optim.SGD(before.parameters(), 0.5), loss=loss)(x[labelled], y[labelled])
    assert close(net, before, rtol=1e-8, atol=1e-12)


def test_mixed_labels_are_used_as_probabilities():
    y = torch.tensor([[0.3, 0.7, 0.0]], dtype=torch.float64)
    assert torch.equal(one_hot(y, y), y)
    z = torch.randn(2, 1, 3, dtype=torch.float64)
    assert torch.allclose(cross_entropy(z, y), -(y * torch.log_softmax(z, 2)).sum(2))


@given(st.integers(0, 1000), st.sampled_from([1.0, 3.0, 4.0]))
def test_distillation_loss_is_t_squared_times_the_mean_divergence(seed, T):
    g = torch.Generator().manual_seed(seed)
    t, z = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    expected = 0.0
    for b in range(6):
        p, q = torch.softmax(t[b] / T, 0), torch.softmax(z[b] / T, 0)
        expected += float((p * (p / q).log()).sum()) / 6
    assert float(distillation_loss(t, z, T)) == pytest.approx(T * T * expected, rel=1e-9)
    assert float(distillation_loss(t, t, T)) == pytest.approx(0, abs=1e-12)


def test_distillation_loss_of_extreme_logits_is_finite():
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = distillation_loss(-z.detach(), z, 1.0)
    value.backward()
    assert value.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("epoch", "value"), [(0, 0.00674), (10, 0.0217), (40, 0.2865), (79, 0.9992), (80, 1), (200, 1)]
)
def test_the_ramp_has_the_values_of_the_papers_code(epoch, value):
    assert sigmoid_rampup(TrainingProgress(epoch, None, 0.1), 80) == pytest.approx(value, rel=3e-3)
    assert sigmoid_rampup(TrainingProgress(0, epoch / 300, 0.1), 80 / 300) == pytest.approx(value, rel=3e-3)
    assert sigmoid_rampup(TrainingProgress(epoch, None, 0.1), 0) == 1


def test_diversity_is_the_mean_distance_of_pairs():
    far = torch.eye(3)[:, None]
    assert float(diversity(list(far))) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert float(diversity([far[0], far[0], far[1]])) == pytest.approx(math.sqrt(2) * 2 / 3, rel=1e-6)
