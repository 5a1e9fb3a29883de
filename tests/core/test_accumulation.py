"""Micro-batches: a list is one batch, and m is the number of samples that share a perturbation."""

import pytest
import torch
from support.small import close, same, sgd, small_batch, small_net
from torch import Tensor, nn

import steppe

TWO_UPDATES = ["repeat-step", "two-step", "sadt-v1"]
REMEMBERING = ["looksam", "look-layersam", "friendly-sam", "arwp"]


def smooth_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """No BatchNorm, no dropout, no kinks: micro-batches must add up exactly."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5)]
    return nn.Sequential(*layers).to(dtype)


def parts(x: Tensor, y: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def m_sharpness(net: nn.Sequential, batch: list[tuple[Tensor, Tensor]], rho: float) -> list[Tensor]:
    """SAM's gradient with a perturbation per part, written out."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    count = sum(len(x) for x, _ in batch)
    for x, y in batch:
        w = [p.detach().clone() for p in net.parameters()]
        g = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
        length = sum((t**2).sum() for t in g).sqrt()
        with torch.no_grad():
            for p, t in zip(net.parameters(), g, strict=True):
                p += rho * t / length
        g = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
        with torch.no_grad():
            for p, before, t, sum_ in zip(net.parameters(), w, g, total, strict=True):
                p.copy_(before)
                sum_ += t * len(x) / count
    return total


@pytest.mark.parametrize(
    ("m", "form", "groups"),
    [
        (4, "whole", (4, 4, 4)),
        (5, "whole", (5, 5, 2)),
        ("micro", "listed", (3, 2, 7)),
        (3, "listed", (3, 3, 3, 3)),
        (100, "whole", (12,)),
        (None, "listed", (12,)),
    ],
)
def test_m_samples_share_a_perturbation(m, form, groups):
    x, y = small_batch(dtype=torch.float64)
    net = smooth_net()
    before = [p.detach().clone() for p in net.parameters()]
    expected = m_sharpness(smooth_net(), parts(x, y, *groups), rho=0.3)
    step = steppe.SAM(rho=0.3).bind(net, torch.optim.SGD(net.parameters(), 1.0), m=m)
    out = step(parts(x, y, 3, 2, 7) if form == "listed" else [(x, y)])
    for p, w, g in zip(net.parameters(), before, expected, strict=True):
        assert torch.allclose(w - p, g, rtol=1e-10, atol=1e-12)
    assert step.passes.per_step() == pytest.approx((2, 2, 1))
    assert torch.allclose(out.loss, nn.functional.cross_entropy(smooth_net()(x), y))
    assert len(out.logits) == 12


@pytest.mark.parametrize("name", ["sam", "lpf-sgd", "wsam", "rwp", "ema"])
def test_m_of_the_whole_batch_changes_nothing(name):
    nets = [small_net(), small_net()]
    for net, m in zip(nets, (None, 12), strict=True):
        torch.manual_seed(3)
        steppe.make(name).bind(net, sgd(net), m=m)(*small_batch())
    assert same(nets[0], nets[1])


@pytest.mark.parametrize("name", [*TWO_UPDATES, *REMEMBERING])
def test_m_is_refused_for_methods_with_two_updates_or_a_state_of_gradients(name):
    net = small_net()
    before = [p.detach().clone() for p in net.parameters()]
    step = steppe.make(name).bind(net, sgd(net), m=4)
    needs = "with one update per step" if name in TWO_UPDATES else "that remembers no gradients"
    with pytest.raises(steppe.InputError, match=f"m needs a method {needs}"):
        step(*small_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(("m", "sync"), [(0, None), ("all", None), (True, None), (2, "global"), ("micro", 2)])
def test_impossible_m_is_refused(m, sync):
    net = small_net()
    with pytest.raises(steppe.InputError, match="m is "):
        steppe.SAM().bind(net, sgd(net), m=m, sync=sync)


def test_a_nan_in_one_group_undoes_the_whole_step():
    net = small_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = small_batch()
    x[-1] = float("nan")
    assert steppe.SAM().bind(net, sgd(net), m=4)(x, y).skipped
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


class Tokens(nn.Module):
    """A tiny tagger: (B, T) token numbers to (B, T, 4) logits; T differs from micro-batch to micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        z: Tensor = self.head(torch.tanh(self.embed(ids)))
        return z


def token_loss(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100)


def test_ragged_micro_batches_weighed_by_their_tokens_are_the_padded_batch():
    g = torch.Generator().manual_seed(0)
    ids, y = torch.randint(0, 9, (5, 7), generator=g), torch.randint(0, 4, (5, 7), generator=g)
    y[2:, 4:] = -100  # padding
    ragged = [(ids[:2], y[:2]), (ids[2:, :4], y[2:, :4])]

    def tokens(batch: steppe.Batch) -> int:
        return int((batch.y != -100).sum())

    nets = [Tokens().double(), Tokens().double()]
    whole, listed = (steppe.SAM(rho=0.2).bind(n, sgd(n), loss=token_loss, weigh=tokens) for n in nets)
    for _ in range(3):
        a, b = whole(ids, y), listed(ragged)
        assert torch.allclose(a.loss, b.loss, rtol=1e-12)
    assert close(nets[0], nets[1], rtol=1e-10, atol=1e-12)
    assert [len(z) for z in b.logits] == [2, 3]
    ids = torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(0))
    y = torch.zeros(5, 7, dtype=torch.long)
    net = Tokens()
    step = steppe.SADT(sigma=0.1).bind(net, sgd(net), loss=token_loss)
    out = step([(ids[:2], y[:2]), (ids[2:, :4], y[2:, :4])])
    assert not out.skipped
    assert step.passes.per_step() == (2, 2, 2)


@pytest.mark.parametrize("m", [None, "micro"])
def test_a_part_without_labels_adds_nothing_if_weigh_says_so(m):
    x, y = small_batch()
    y[:4] = -100

    def labels(batch: steppe.Batch) -> int:
        return int((batch.y != -100).sum())

    nets = [smooth_net(), smooth_net()]
    x = x.double()
    parts = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    for net, batch in zip(nets, (parts, parts[1:]), strict=True):
        step = steppe.SAM(rho=0.2).bind(net, sgd(net), weigh=labels, m=m)
        for _ in range(2):
            assert not step(batch).skipped
    assert close(*nets, rtol=1e-10, atol=1e-12)


def test_esam_ranks_sequences_by_what_their_tokens_add():
    def loss(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.cross_entropy(z.flatten(0, 1), y.flatten(), reduction=reduction)

    g = torch.Generator().manual_seed(0)
    ids, y = torch.randint(0, 9, (6, 7), generator=g), torch.randint(0, 4, (6, 7), generator=g)
    y[:2, 1:], y[3] = -100, -100
    net = Tokens()
    step = steppe.ESAM().bind(net, sgd(net), loss=loss)
    assert not step(ids, y).skipped
    values = step.runtime.losses(z := net(ids).detach(), steppe.Batch(ids, y))
    each = nn.functional.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(1)
    assert torch.allclose(values, each)
    assert values[3] == 0


def pair_loss(z: Tensor, y: tuple[Tensor, Tensor], reduction: str = "mean") -> Tensor:
    return nn.functional.cross_entropy(z, y[0], reduction=reduction) + 0 * y[1].sum()


class Two(nn.Module):
    """Takes a pair of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth_net()

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        z: Tensor = self.net(x[0] + x[1])
        return z


@pytest.mark.parametrize("pairs", ["x", "y"])
@pytest.mark.parametrize("cut", ["microbatch", "list", "m"])
def test_a_loss_is_checked_where_parts_have_as_many_samples_as_a_pair_has_entries(pairs, cut):
    """Two tensors of two rows each may be two samples, but a sum over the batch is no mean either way."""
    x, y = small_batch(dtype=torch.float64)

    def batch(i: int, j: int) -> tuple[object, object]:
        return ((x[i:j], x[i:j]), y[i:j]) if pairs == "x" else (x[i:j], (y[i:j], y[i:j]))

    def step(reduction: str) -> steppe.StepOutput:
        def loss(z: Tensor, t: Tensor | tuple[Tensor, Tensor]) -> Tensor:
            return pair_loss(z, t if isinstance(t, tuple) else (t, t), reduction)

        net = Two() if pairs == "x" else smooth_net()
        options = {"microbatch": {"microbatch": 2}, "m": {"m": 2}, "list": {}}[cut]
        bound = steppe.SAM().bind(net, sgd(net), loss=loss, **options)
        return bound([batch(0, 2), batch(2, 4)]) if cut == "list" else bound(*batch(0, 12))

    with pytest.raises(steppe.InputError, match="the loss of|may be one per sample"):
        step("sum")
    if (pairs, cut) == ("y", "list"):
        with pytest.raises(steppe.InputError, match="name them in a mapping"):
            step("mean")
    else:
        assert step("mean").loss.isfinite()


def test_parts_of_other_sizes_say_what_a_pair_of_two_rows_is():
    x, y = small_batch(dtype=torch.float64)
    net = smooth_net()
    step = steppe.SAM().bind(net, sgd(net), loss=pair_loss)
    out = step([(x[:2], (y[:2], y[:2])), (x[2:], (y[2:], y[2:]))])
    assert torch.allclose(out.loss, nn.functional.cross_entropy(smooth_net()(x), y))
