"""Divergences of outputs: each is the usual loss with the reference as target, less its least value."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import steppe
from steppe.core.numerics.outputs import Outputs, outputs_of
from steppe.errors import InputError


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 99), st.sampled_from([1.0, 3.0]), st.sampled_from([(7, 4), (5, 4, 3), (3, 4, 2, 6)]))
def test_classes_cost_what_cross_entropy_with_the_references_probabilities_does(seed, T, shape):
    a, b = draw(*shape, seed=seed), draw(*shape, seed=seed + 100)
    p = torch.softmax(a / T, 1)
    gap = F.cross_entropy(b / T, p) - F.cross_entropy(a / T, p)
    assert Outputs("classes").divergence(a, b, None, T).item() == pytest.approx(gap.item(), abs=1e-12)
    last = Outputs("classes", -1).divergence(a.movedim(1, -1), b.movedim(1, -1), None, T)
    assert last.item() == pytest.approx(gap.item(), abs=1e-12)


@given(st.integers(0, 99), st.sampled_from([1.0, 3.0]))
def test_labels_cost_what_binary_cross_entropy_with_the_references_probabilities_does(seed, T):
    a, b = draw(7, 4, seed=seed), draw(7, 4, seed=seed + 100)
    loss = F.binary_cross_entropy_with_logits
    p = torch.sigmoid(a / T)
    gap = loss(b / T, p) - loss(a / T, p)
    assert Outputs("labels").divergence(a, b, None, T).item() == pytest.approx(gap.item(), abs=1e-12)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_numbers_cost_their_mean_squared_difference_whatever_the_temperature(shape):
    a, b = draw(*shape), draw(*shape, seed=1)
    for T in (1.0, 5.0):
        value = T**2 * Outputs("numbers").divergence(a, b, None, T)
        assert value.item() == pytest.approx(F.mse_loss(b, a).item(), rel=1e-12)


@pytest.mark.parametrize("form", ["classes", "labels", "numbers"])
def test_samples_divergences_average_to_the_whole(form):
    a, b = draw(6, 4), draw(6, 4, seed=1)
    each = Outputs(form).per_sample(a, b, None, 2.0)
    assert each.shape == (6,)
    assert each.mean().item() == pytest.approx(Outputs(form).divergence(a, b, None, 2.0).item(), rel=1e-12)


def test_positions_without_a_target_do_not_count():
    a, b, y = draw(2, 5, 4), draw(2, 5, 4, seed=1), torch.zeros(2, 5, dtype=torch.long)
    y[0, 2:] = -100
    counted = torch.cat([torch.cat([z[0, :2], z[1]]) for z in (a, b)]).chunk(2)
    expected = Outputs("classes").divergence(*counted, None)
    assert Outputs("classes", -1).divergence(a, b, y).item() == pytest.approx(expected.item(), rel=1e-12)


def test_positions_whose_target_is_no_class_do_not_count():
    a, b, y = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1), torch.zeros(2, 3, 3, dtype=torch.long)
    y[:, 1:] = 255  # ignored by the loss, whatever that is
    expected = Outputs("classes").divergence(a[:, :, :1], b[:, :, :1], None)
    assert Outputs("classes").divergence(a, b, y).item() == pytest.approx(expected.item(), rel=1e-12)


def causal(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def test_of_causal_models_the_position_before_a_target_counts():
    a, b, y = draw(2, 5, 4), draw(2, 5, 4, seed=1), torch.full((2, 5), -100)
    y[0, 3:] = y[1, 4:] = 1
    kind = outputs_of(causal, b, y)
    assert (kind.form, kind.ahead) == ("classes", True)
    counted = [torch.cat([z[0, 2:4], z[1, 3:4]]) for z in (a, b)]
    expected = Outputs("classes").divergence(*counted, None)
    assert kind.divergence(a, b, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert not outputs_of(tokens, b, y).ahead


def tokens(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def pixels(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -(torch.log_softmax(z, 1).gather(1, y[:, None])).mean()


def soft(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -(y * torch.log_softmax(z, 1)).sum(1).mean()


def squared(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((z - y) ** 2).mean()


def yes_or_no(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.softplus(-z * (2 * y - 1)).mean()


ROWS = torch.arange(8)
CASES = {
    "cross-entropy": (F.cross_entropy, draw(8, 4), ROWS % 4, ("classes", 1)),
    "smoothed": (partial(F.cross_entropy, label_smoothing=0.1), draw(8, 4), ROWS % 4, ("classes", 1)),
    "weighted module": (nn.CrossEntropyLoss(torch.ones(4).double()), draw(8, 4), ROWS % 4, ("classes", 1)),
    "soft targets": (soft, draw(8, 4), torch.softmax(draw(8, 4, seed=3), 1), ("classes", 1)),
    "tokens": (tokens, draw(8, 3, 4), torch.ones(8, 3, dtype=torch.long), ("classes", -1)),
    "tokens, as many as classes": (tokens, draw(8, 4, 4), torch.ones(8, 4, dtype=torch.long), ("classes", -1)),
    "pixels": (pixels, draw(8, 4, 4, 4), torch.ones(8, 4, 4, dtype=torch.long), ("classes", 1)),
    "model's own": ("model", draw(8, 5, 4), torch.ones(8, 5, dtype=torch.long), ("classes", -1)),
    "labels": (F.binary_cross_entropy_with_logits, draw(8, 4), (draw(8, 4) > 0).double(), ("labels", 1)),
    "labels, own loss": (yes_or_no, draw(8, 4), (draw(8, 4) > 0).double(), ("labels", 1)),
    "yes or no": (yes_or_no, draw(8, 1), (draw(8, 1) > 0).double(), ("labels", 1)),
    "squared": (F.mse_loss, draw(8, 1), draw(8, 1), ("numbers", 1)),
    "one dimension": (squared, draw(8), draw(8, seed=1), ("numbers", 0)),
    "several numbers": (squared, draw(8, 3), draw(8, 3, seed=1), ("numbers", 1)),
    "huber": (nn.HuberLoss(), draw(8, 3), draw(8, 3, seed=1), ("numbers", 1)),
    "regression by the model": ("model", draw(8, 1), draw(8), ("numbers", 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_the_targets_say_what_outputs_are(case):
    loss, z, y, expected = CASES[case]
    kind = outputs_of(loss, z, y)
    assert (kind.form, kind.dim) == expected
    assert kind.ignored == -100


def test_the_users_word_and_ignore_index_are_taken():
    assert outputs_of(squared, draw(8, 3), draw(8, 3), "labels").form == "labels"
    assert outputs_of(partial(F.cross_entropy, ignore_index=255), draw(8, 3), ROWS % 3).ignored == 255
    assert outputs_of(nn.CrossEntropyLoss(ignore_index=7), draw(8, 3), ROWS % 3).ignored == 7


def test_one_class_and_no_outputs_are_refused():
    with pytest.raises(InputError, match="always 0; give bind outputs='labels'"):
        Outputs("classes").divergence(draw(8, 1), draw(8, 1), None)
    with pytest.raises(InputError, match="returns only its loss"):
        outputs_of("model", torch.empty(0), None)
    net = nn.Linear(2, 1)
    with pytest.raises(InputError, match="outputs is 'text'; give 'classes', 'labels', 'numbers', or None"):
        steppe.MESA().bind(net, torch.optim.SGD(net.parameters(), 0.1), outputs="text")


def trained(method: steppe.Method, steps: int = 4) -> torch.Tensor:
    """Return the weights of a linear regression after some steps."""
    torch.manual_seed(0)
    net = method.build(lambda: nn.Linear(3, 1).double())
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=F.mse_loss, steps=100, epoch=2, seed=1)
    x, y = draw(8, 3), draw(8, 1, seed=1)
    for _ in range(steps):
        step(steppe.Batch(x, y, ROWS))
    return next(net.parameters()).detach()


@pytest.mark.parametrize(
    ("method", "plain"),
    [
        (steppe.MESA(decay=0.5), steppe.Plain()),
        (steppe.SAF(past=1), steppe.Plain()),
        (steppe.SADT(sigma=0.1), steppe.RepeatStep()),
        (steppe.DML(), steppe.DML(lam=0)),
        (steppe.KDCL(), steppe.KDCL(lam=0, ce=1)),
    ],
)
def test_on_a_squared_error_a_divergence_is_not_zero(method, plain):
    """Of one output the probabilities are 1: their divergence would be 0, and the method plain training."""
    assert not torch.equal(trained(method), trained(plain))


def test_mesa_on_a_linear_regression_is_the_closed_form():
    """grad [mean (Xw + c - y)^2 + lam mean (Xw + c - Xv - d)^2], v the running mean of w."""
    x, y, lam, decay, rate = draw(8, 3), draw(8, 1, seed=1), 0.8, 0.5, 0.1
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    design = torch.cat([x, torch.ones(8, 1, dtype=torch.float64)], 1)
    w = torch.cat([net.weight, net.bias[None]], 1).detach().T.clone()
    v = w.clone()
    for t in range(4):
        grad = 2 / 8 * design.T @ ((design @ w - y) + lam * design @ (w - v))
        w = w - rate * grad
        d = min(decay, (1 + t) / (10 + t))
        v = d * v + (1 - d) * w
    assert torch.allclose(trained(steppe.MESA(decay=decay, lam=lam)).T, w[:3], atol=1e-12)


def test_a_named_target_of_kdcl_needs_classes():
    with pytest.raises(InputError, match="target is 'linear', which needs the class of each sample"):
        trained(steppe.KDCL(target="linear"))


def test_saf_stores_no_positions_and_compresses_only_classes():
    with pytest.raises(InputError, match="store is 'half' and the outputs are numbers; give store='full'"):
        trained(steppe.SAF(past=1, store="half"))
    net = nn.Linear(3, 4)
    step = steppe.SAF().bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=tokens)
    with pytest.raises(InputError, match=r"they are \(5, 4\) numbers here; use mesa"):
        step(steppe.Batch(torch.ones(8, 5, 3), torch.ones(8, 5, dtype=torch.long), ROWS))
