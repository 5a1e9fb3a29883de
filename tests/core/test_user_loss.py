"""A loss of any kind trains on whole batches; in parts it is a mean over samples, or is refused with a remedy."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe
from steppe.core.numerics.losses import per_sample

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 8, generator=G), torch.randint(0, 3, (16,), generator=G)
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0])
PARTS = [{"microbatch": 4}, {"microbatch": 5}, {"m": 4}, {"microbatch": 4, "precision": "bf16"}]


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 3).float()


def contrastive(z: Tensor, y: Tensor) -> Tensor:
    z = F.normalize(z, dim=1)
    others = ~torch.eye(len(z), dtype=torch.bool)
    log_p = F.log_softmax((z @ z.T / 0.5).masked_fill(~others, -1e9), 1)
    positive = (y[:, None] == y) & others
    return -(log_p * positive).sum() / positive.sum().clamp(min=1)


def dice(z: Tensor, y: Tensor) -> Tensor:
    p, t = z.softmax(1), one_hot(y)
    return 1 - ((2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)).mean()


def decorrelated(z: Tensor, y: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return 9 * (centred.T @ centred / len(z)).square().mean() + F.cross_entropy(z, y)


def standardised(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy((z - z.mean(0)) / (z.std(0, correction=0) + 1e-3), y)


def focal(z: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(z, y, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def ctc(z: Tensor, y: Tensor) -> Tensor:
    steps = F.log_softmax(torch.stack([z, z.roll(1, 1), z.flip(1), z]), 2)
    return F.ctc_loss(steps, 1 + y[:, None] % 2, torch.full((len(y),), 4), torch.ones(len(y), dtype=torch.long))


def critic(z: Tensor, y: Tensor) -> Tensor:
    """A mean of large terms of both signs, near 0."""
    return 1e5 * (z[:, 0] - z[:, 1] * (y - 1)).mean()


BATCH_LOSSES = {f.__name__: f for f in (contrastive, dice, decorrelated, standardised)}
MEANS = {
    "smoothed": partial(F.cross_entropy, label_smoothing=0.1),
    "module": nn.CrossEntropyLoss(label_smoothing=0.2),
    "bce": lambda z, y: F.binary_cross_entropy_with_logits(z, one_hot(y)),
    "mse": lambda z, y: F.mse_loss(z, one_hot(y)),
    "focal": focal,
    "ctc": ctc,
    "critic": critic,
    "bf16": lambda z, y: F.cross_entropy(z.bfloat16(), y),
    "bf16 inside": lambda z, y: F.cross_entropy(z.bfloat16(), y).float(),
    "fp16 inside": lambda z, y: F.cross_entropy(z, y).half().float(),
    "fp64": lambda z, y: F.cross_entropy(z.double(), y),
}
WEIGHED = {
    "class weights": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), lambda b: float(CLASS_WEIGHTS[b.y].sum())),
    "ignored": (partial(F.cross_entropy, ignore_index=2), lambda b: float((b.y != 2).sum())),
}


class Own(nn.Module):
    def __init__(self, loss) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(8, 3), loss

    def forward(self, x, labels):
        z = self.layer(x)
        return {"loss": self.loss(z, labels), "logits": z}


def train(loss, *, own: bool = False, steps: int = 3, **options) -> Tensor:
    torch.manual_seed(1)
    net = Own(loss) if own else nn.Linear(8, 3)
    step = steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1), loss="model" if own else loss, **options)
    for k in range(steps):
        step(X.roll(k, 0), Y.roll(k, 0))
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("own", [False, True], ids=["function", "model"])
@pytest.mark.parametrize("name", BATCH_LOSSES)
def test_a_loss_of_the_whole_batch_trains_it_whole_and_is_refused_in_parts(name, own):
    loss = BATCH_LOSSES[name]
    assert not torch.equal(train(loss, own=own, steps=1), train(loss, own=own, steps=2))
    for options in PARTS:
        with pytest.raises(steppe.InputError, match=r"reduction='mean'\), or weigh=, or the whole batch at once"):
            train(loss, own=own, **options)


@pytest.mark.parametrize("own", [False, True], ids=["function", "model"])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_over_samples_is_trained_in_parts(name, own):
    whole = train(MEANS[name], own=own)
    torch.testing.assert_close(train(MEANS[name], own=own, microbatch=5), whole, rtol=0.05, atol=0.05)
    for options in PARTS:
        train(MEANS[name], own=own, **options)


@pytest.mark.parametrize("name", WEIGHED)
def test_weigh_makes_other_means_exact_in_parts(name):
    loss, weigh = WEIGHED[name]
    torch.testing.assert_close(train(loss, microbatch=5, weigh=weigh), train(loss), rtol=1e-4, atol=1e-5)
    with pytest.raises(steppe.InputError, match="or weigh="):
        train(loss, microbatch=4)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.loss(z, y)


def weighted(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, weight=CLASS_WEIGHTS, label_smoothing=0.1)


FORMS = {
    "module": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1),
    "partial": partial(F.cross_entropy, weight=CLASS_WEIGHTS, label_smoothing=0.1),
    "partial with reduction": partial(
        F.cross_entropy, weight=CLASS_WEIGHTS, label_smoothing=0.1, reduction="mean"
    ),
    "function": weighted,
    "lambda": lambda z, y: weighted(z, y),
    "wrapped": Wrapped(),
    "method": Wrapped().forward,
    "compiled": torch.compile(weighted, backend="eager"),
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_of_a_weighted_loss_are_ranked_whatever_its_form(form):
    """The term of a sample in the weighted mean is the weight of its class times its loss."""
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    expected = F.cross_entropy(z, Y, weight=CLASS_WEIGHTS, label_smoothing=0.1, reduction="none")
    values = per_sample(FORMS[form], z, Y)
    torch.testing.assert_close(values / values.sum(), expected / expected.sum())


def test_terms_of_several_losses_are_those_of_their_sum():
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    terms = F.cross_entropy(z, Y, weight=CLASS_WEIGHTS, reduction="none") / CLASS_WEIGHTS[Y].mean()
    values = per_sample(lambda z, y: weighted_and_squared(z, y), z, Y)
    torch.testing.assert_close(values, terms + 0.5 * (z - one_hot(Y)).square().mean(1))


def weighted_and_squared(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, weight=CLASS_WEIGHTS) + 0.5 * F.mse_loss(z, one_hot(y))


def test_a_loss_without_terms_of_samples_is_refused_by_name():
    net = nn.Linear(8, 3)
    step = steppe.ESAM().bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=lambda z, y: weighted(z, y).sqrt())
    with pytest.raises(steppe.InputError, match="give it the argument reduction, as torch.nn.functional"):
        step(X, Y)


def nll(z: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(z, 1), y)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), nll])
@pytest.mark.parametrize(
    ("y", "remedy"),
    [
        (Y.int(), r"torch.int32 and shape \(16,\) .*; give y.long\(\)"),
        (Y.float(), r"torch.float32 and shape \(16,\) .*; give y.long\(\)"),
        (Y[:, None], r"torch.int64 and shape \(16, 1\) .*; give y.squeeze\(1\)"),
        (Y[:, None].short(), r"torch.int16 and shape \(16, 1\) .*; give y.squeeze\(1\).long\(\)"),
    ],
)
def test_labels_that_the_loss_does_not_take_are_refused_with_those_that_it_takes(loss, y, remedy):
    net = nn.Linear(8, 3)
    step = steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=loss)
    with pytest.raises(steppe.InputError, match=f"y of {remedy}$"):
        step(X, y)
    assert step(X, eval(remedy.rpartition("give ")[2].replace("\\", ""), {"y": y})).loss > 0


def test_targets_of_one_output_are_refused_by_shape_and_type():
    net = nn.Linear(8, 1)
    step = steppe.Plain().bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=nn.BCEWithLogitsLoss())
    with pytest.raises(steppe.InputError, match=r"shape \(16,\).*; give y.unsqueeze\(1\).float\(\)$"):
        step(X, Y % 2)


@pytest.mark.parametrize("y", [Y - 1, Y[:7], Y[None], torch.rand(16), torch.tensor(1)])
def test_an_error_of_the_loss_that_no_other_labels_mend_is_its_own(y):
    net = nn.Linear(8, 3)
    with pytest.raises((IndexError, ValueError, RuntimeError)) as raised:
        steppe.Plain().bind(net, torch.optim.SGD(net.parameters(), 0.1))(X, y)
    assert not isinstance(raised.value, steppe.InputError)


def test_an_error_that_a_loss_raises_only_sometimes_is_its_own():
    net, calls = nn.Linear(8, 1), iter([True])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        if next(calls, False):
            raise ValueError("mine")
        return F.mse_loss(z[:, 0], y)

    with pytest.raises(ValueError, match="mine"):
        steppe.Plain().bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=loss)(X, Y.float())
