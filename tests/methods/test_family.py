"""What the relatives of SAM are to each other, and what they save."""

from __future__ import annotations

import copy

import pytest
import torch
from support.many import farthest, halved, together
from support.small import indexed, sgd, small_batch, small_net, trained
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import steppe
from steppe.core.numerics.filters import filter_noise

CROSS: list[tuple[steppe.Method, steppe.Method]] = [
    (steppe.MixedSAM(alpha=0.0), steppe.SAM()),
    (steppe.MixedSAM(alpha=1.0), steppe.Plain()),
    (steppe.GSAM(alpha=0.0), steppe.SAM()),
    (steppe.ESAM(beta=1.0, gamma=1.0), steppe.SAM()),
    (steppe.LookSAM(rho=0.05, k=1), steppe.SAM()),
    (steppe.LookSAM(rho=0.05, k=3, alpha=0.0), steppe.ActiveWindow(steppe.SAM(), every=3)),
    (steppe.FriendlySAM(rho=0.05, sigma=0.0), steppe.SAM()),
    (steppe.WSAM(gamma=0.5, decoupled=False), steppe.SAM()),
    (steppe.RSAM(gamma=0.0), steppe.SAM()),
    (steppe.RSAM(rho=0.0, gamma=0.0), steppe.Plain()),
    (steppe.RWP(alpha=0.0), steppe.LPFSGD(gamma=0.01, M=1)),
    (steppe.RWP(gamma=0.0), steppe.Plain()),
    (steppe.ARWP(gamma=0.02, eta=0.0), steppe.RWP(gamma=0.02)),
    (steppe.ARWP(alpha=1.0), steppe.Plain()),
    (steppe.LPFSGD(gamma=0.0), steppe.Plain()),
    (steppe.SAF(lam=0.0), steppe.Plain()),
    (steppe.SAF(start=100), steppe.Plain()),
    (steppe.MESA(lam=0.0), steppe.Plain()),
    (steppe.MESA(start=100), steppe.Plain()),
    (steppe.EMA(), steppe.Plain()),
    (steppe.SWA(), steppe.Plain()),
    (steppe.On(steppe.SAM(), steppe.EMA()), steppe.SAM()),
    (steppe.On(steppe.SAM(), steppe.MESA(lam=0.0)), steppe.SAM()),
]


@pytest.mark.parametrize(("method", "simpler"), CROSS, ids=lambda m: repr(m))
def test_at_the_border_a_relative_is_the_other_bit_for_bit(method, simpler):
    a, b = trained(method), trained(simpler)
    for s, t in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(s, t)


def test_asam_on_biases_alone_is_sam():
    nets = [small_net(), small_net()]
    for net, method in zip(nets, (steppe.ASAM(rho=0.3), steppe.SAM(rho=0.3)), strict=True):
        for name, p in net.named_parameters():
            p.requires_grad_(name.endswith("bias"))
        trained(method, net)
    for s, t in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(s, t)


@pytest.mark.parametrize("scaling", ["weights", "all"])
def test_asam_does_not_care_about_the_scale_of_a_layer(scaling):
    """Scaling one layer up and the next down leaves the function, and asam's look at it, as they were."""
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    losses = []
    for factor in (1.0, 7.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
        with torch.no_grad():
            net[0].weight.mul_(factor)
            net[2].weight.div_(factor)
        seen = []

        def loss(z: Tensor, target: Tensor, seen: list[Tensor] = seen) -> Tensor:
            value = nn.functional.cross_entropy(z, target)
            seen.append(value.detach())
            return value

        steppe.ASAM(rho=0.5, eta=0.0, scaling=scaling).bind(
            net, torch.optim.SGD(net.parameters(), 0.0), loss=loss
        )(x, y)
        losses.append(seen)
    assert torch.allclose(losses[0][1], losses[1][1], rtol=1e-10)
    assert losses[0][1] > losses[0][0]


def look(method: steppe.Method, **options: object) -> tuple[Tensor, list[Tensor]]:
    """Return the offset of the last pass from the weights, tensor by tensor, and as one vector."""
    net = small_net(dropout=0.0)
    seen: list[list[Tensor]] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(z, y)

    method.bind(net, torch.optim.SGD(net.parameters(), 0.0), loss=loss, **options)(indexed(0))
    moved = [b - a for a, b in zip(seen[0], seen[-1], strict=True)]
    return torch.cat([m.flatten() for m in moved]), moved


def test_sam_climbs_as_far_as_it_is_told():
    whole, _ = look(steppe.SAM(rho=0.3))
    assert float(whole.norm()) == pytest.approx(0.3, rel=1e-4)
    whole, _ = look(steppe.SAM(rho=0.3, ascents=4))
    assert float(whole.norm()) == pytest.approx(0.3, rel=1e-3)  # projected onto the ball
    _, each = look(steppe.SAM(rho=0.3, norm="tensor"))
    # the biases below BatchNorm have no gradient but rounding, and are normalised all the same
    assert all(float(m.norm()) == pytest.approx(0.3, rel=1e-3) for m in each if float(m.norm()) > 1e-3)


def test_several_ascents_end_higher_than_one():
    values = []
    for ascents in (1, 5):
        net = small_net(dropout=0.0)
        seen: list[Tensor] = []

        def loss(z: Tensor, y: Tensor, seen: list[Tensor] = seen) -> Tensor:
            value = nn.functional.cross_entropy(z, y)
            seen.append(value.detach())
            return value

        steppe.SAM(rho=0.5, ascents=ascents).bind(net, sgd(net), loss=loss)(indexed(0))
        values.append(float(seen[-1]))
    assert values[1] > values[0]


def test_decay_in_the_loss_is_an_l2_term_in_every_pass():
    """Against the same term written into the user's loss, as the authors of SAM have it."""
    nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
    lam = 0.1

    def with_term(z: Tensor, y: Tensor) -> Tensor:
        norm = torch.stack([p.square().sum() for p in nets[1].parameters()]).sum()
        return nn.functional.cross_entropy(z, y) + lam / 2 * norm

    steps = [
        steppe.SAM(rho=0.3, decay=lam).bind(nets[0], torch.optim.SGD(nets[0].parameters(), 0.1)),
        steppe.SAM(rho=0.3).bind(nets[1], torch.optim.SGD(nets[1].parameters(), 0.1), loss=with_term),
    ]
    for k in range(3):
        for step in steps:
            step(indexed(k))
    for s, t in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(s, t, atol=1e-5)


def test_gsam_leaves_out_what_the_look_does_not_see():
    """alpha 1: the update keeps no part of the clean gradient's rejection, g_p - (g - <g, u> u)."""
    net = small_net(dropout=0.0, dtype=torch.float64)
    x, y = small_batch(dtype=torch.float64)
    before = [p.detach().clone() for p in net.parameters()]
    g = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
    net = small_net(dropout=0.0, dtype=torch.float64)
    steppe.GSAM(rho=0.2, alpha=1.0).bind(net, torch.optim.SGD(net.parameters(), 1.0))(x, y)
    moved = torch.cat([(w - p.detach()).flatten() for w, p in zip(before, net.parameters(), strict=True)])
    net = small_net(dropout=0.0, dtype=torch.float64)
    steppe.SAM(rho=0.2).bind(net, torch.optim.SGD(net.parameters(), 1.0))(x, y)
    g_p = torch.cat([(w - p.detach()).flatten() for w, p in zip(before, net.parameters(), strict=True)])
    flat = torch.cat([t.flatten() for t in g])
    assert float((moved - g_p) @ g_p) == pytest.approx(0.0, abs=1e-12)
    assert torch.allclose(g_p - moved, flat - g_p * (flat @ g_p) / (g_p @ g_p), rtol=1e-9, atol=1e-12)


def test_looksam_saves_passes_and_says_so():
    net = small_net()
    step = steppe.LookSAM(k=5).bind(net, sgd(net))
    for k in range(20):
        step(indexed(k))
    assert step.passes.per_step() == pytest.approx((1.2, 1.2, 1))


def test_looksam_goes_on_after_a_skipped_look():
    """Nothing was remembered yet, so the steps until the next look are plain."""
    nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
    looking, plain = steppe.LookSAM(k=3).bind(nets[0], sgd(nets[0])), steppe.Plain().bind(nets[1], sgd(nets[1]))
    bad = indexed(0)
    bad.x[0] = float("inf")
    assert looking(bad).skipped
    for k in (1, 2):
        looking(indexed(k))
        plain(indexed(k))
    for s, t in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(s, t)


def flops(method: steppe.Method, seed: int = 0) -> int:
    net = small_net(dropout=0.0)
    step = method.bind(net, sgd(net), seed=seed)
    with FlopCounterMode(display=False) as counter:
        step(indexed(0))
    return counter.get_total_flops()


def test_esam_saves_the_backward_work_of_what_it_leaves_out_and_of_the_samples():
    sam, half = flops(steppe.SAM()), flops(steppe.ESAM(beta=1.0, gamma=0.5))
    plain = flops(steppe.Plain())
    # a clean pass, a forward pass (a third), and half a pass
    assert half / plain == pytest.approx(1 + 1 / 3 + 0.5, rel=0.1)
    fewest = min(flops(steppe.ESAM(beta=0.3, gamma=1.0), seed) for seed in range(8))
    assert fewest < 0.9 * sam


def test_esam_keeps_the_right_number_of_the_sharpest_samples():
    chosen: list[Tensor] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        if z.requires_grad and len(z) > 1:
            chosen.append(y.detach().clone())
        return nn.functional.cross_entropy(z, y)

    net = small_net(dropout=0.0)
    rise: list[Tensor] = []
    x = small_batch()[0]
    y = torch.arange(12) % 5
    step = steppe.ESAM(rho=0.5, beta=1.0, gamma=0.25).bind(net, torch.optim.SGD(net.parameters(), 0.0), loss=loss)
    step(x, y)
    assert [len(c) for c in chosen] == [12, 3]
    # the same by hand, at the point that sam looks from
    g = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
    length = torch.stack([t.square().sum() for t in g]).sum().sqrt()
    with torch.no_grad():
        clean = nn.functional.cross_entropy(net(x), y, reduction="none")
        for p, t in zip(net.parameters(), g, strict=True):
            p += 0.5 * t / length
        rise = nn.functional.cross_entropy(net(x), y, reduction="none") - clean
    assert torch.equal(chosen[1], y[rise.topk(3).indices.sort().values])


@pytest.mark.parametrize("gamma", [0.01, 0.5])
def test_esam_survives_ties_and_tiny_shares(gamma):
    """With equal samples every rise is the same; the authors' code then keeps none and divides by zero."""
    net = small_net(dropout=0.0)
    x, _ = small_batch(count=1)
    step = steppe.ESAM(gamma=gamma).bind(net, sgd(net))
    assert not step(x.expand(12, -1, -1, -1).clone(), torch.zeros(12, dtype=torch.long)).skipped


def test_filter_noise_has_the_norm_of_its_filter():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 50, 3), nn.ConvTranspose2d(50, 20, 3), nn.Linear(200, 40), nn.Embedding(30, 100)]
    net = nn.Sequential(*layers)
    params = list(net.parameters())
    owners = [m for m in layers for _ in m.parameters()]
    noise = filter_noise(params, owners, 0.5, torch.Generator().manual_seed(1)).vector()
    for n, p, owner in zip(noise, params, owners, strict=True):
        units, weights = (
            t.movedim(1, 0) if isinstance(owner, nn.ConvTranspose2d) and p.ndim > 1 else t for t in (n, p)
        )
        if p.ndim > 1:
            ratio = units.detach().flatten(1).std(1) / weights.detach().flatten(1).norm(dim=1)
            assert float(ratio.mean()) == pytest.approx(0.5, rel=0.1)


def test_rwp_with_two_batches_takes_a_gradient_of_each_half():
    net = small_net(dropout=0.0)
    seen: list[Tensor] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return nn.functional.cross_entropy(z, y)

    x, y = small_batch()
    step = steppe.RWP(batches=2).bind(net, sgd(net), loss=loss)
    out = step(x, y)
    assert torch.equal(seen[0], y[:6])
    assert torch.equal(seen[1], y[6:])
    assert step.passes.per_step() == (1, 1, 1)
    assert len(out.logits) == 6


@pytest.mark.parametrize("spec", ["rwp:batches=2", "rwp:batches=2,alpha=0", "esam", "lpf-sgd", "lpf-sgd:M=5"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_methods_that_cut_a_batch_take_small_ones_through_batch_norm(spec, count):
    net = small_net()
    step = steppe.methods.parse(spec).bind(net, sgd(net))
    assert not step(indexed(0, count)).skipped


def test_rwp_with_two_batches_and_saf_keep_what_the_clean_half_said():
    net = small_net()
    step = steppe.methods.parse("rwp:batches=2+saf:past=1").bind(net, sgd(net))
    for k in range(3):
        out = step(indexed(k))
    store = step.state["base"]
    assert store.visits[:6].tolist() == [3] * 6
    assert not store.visits[6:].any()
    assert torch.equal(store.values[:6, 0], out.logits)


@pytest.mark.parametrize("settings", [{}, {"batches": 2}, {"alpha": 0.3, "gamma": 0.2}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rwp_with_both_gradients_at_once_is_the_same_bit_for_bit(settings, precision):
    nets = [small_net(), small_net()]
    for net, streams in zip(nets, (False, True), strict=True):
        net.idle = nn.Parameter(torch.ones(3))
        torch.manual_seed(7)
        step = steppe.RWP(**settings, streams=streams).bind(net, sgd(net), precision=precision)
        for k in range(3):
            step(indexed(k))
        assert step.passes.per_step() == ((1, 1, 1) if "batches" in settings else (2, 2, 1))
        assert not any(p.grad is not None for p in net.parameters())
    for s, t in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(s, t)


def test_rwp_with_both_gradients_at_once_undoes_a_bad_pass_and_refuses_parts():
    for bad in (1, 2):
        net, calls = small_net(dropout=0.0), []

        def loss(z: Tensor, y: Tensor, calls: list[int] = calls, bad: int = bad) -> Tensor:
            calls.append(1)
            return nn.functional.cross_entropy(z, y) * (float("nan") if len(calls) == bad else 1)

        before = copy.deepcopy(net.state_dict())
        step = steppe.RWP(streams=True).bind(net, sgd(net), loss=loss)
        assert step(indexed(0)).skipped
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert not step(indexed(0)).skipped
    with pytest.raises(steppe.InputError, match="whole batches"):
        steppe.RWP(streams=True).bind(net, sgd(net), microbatch=4)(indexed(0))


@pytest.mark.parametrize("count", [2, 3])
def test_rwp_by_halves_of_the_processes_is_the_mean_of_clean_and_noisy(count):
    found = together(count, halved, 0.3)
    for answer in found[1:]:
        assert all(torch.equal(s, t) for s, t in zip(found[0]["values"], answer["values"], strict=True))
    clean = [a["gradient"] for a in found[::2]]
    noisy = [a["gradient"] for a in found[1::2]]
    for i, moved in enumerate(found[0]["moved"]):
        wanted = 0.3 * torch.stack([g[i] for g in clean]).mean(0) + 0.7 * torch.stack([g[i] for g in noisy]).mean(
            0
        )
        assert torch.allclose(moved, wanted, atol=1e-6)


def test_rwp_by_halves_needs_processes():
    net = small_net()
    with pytest.raises(steppe.InputError, match="start it under DDP"):
        steppe.RWP(halves=True).bind(net, sgd(net))(indexed(0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("saf:store=quarter", "store is 'quarter'; give 'full', 'half' or 'top:K'"),
        ("esam:gamma=0", "gamma is 0"),
        ("wsam:gamma=1", "gamma is 1"),
        ("rwp:halves=true,batches=2", "halves is True"),
        ("gsam:adaptive=yes", "adaptive is 'yes'"),
        ("looksam:k=0", "k is 0"),
        ("swa:every=0", "every is 0"),
        ("sam+esam", "both define the step"),
        ("saf+mesa", "both define the objective"),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(steppe.InputError, match=message):
        steppe.methods.parse(spec)


def test_one_step_s_distance_is_that_of_another_package_s_form():
    """davda54's adaptive form with every weight at 1 is SAM's ascent."""
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    kept = [p.detach().clone() for p in net.parameters()]
    other = copy.deepcopy(net)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    steppe.ASAM(rho=0.2, scaling="all").bind(net, torch.optim.SGD(net.parameters(), 1.0))(x, y)
    steppe.SAM(rho=0.2).bind(other, torch.optim.SGD(other.parameters(), 1.0))(x, y)
    assert farthest(kept, list(net.parameters())) > 0
    assert torch.allclose(net.weight, other.weight, atol=1e-6)
