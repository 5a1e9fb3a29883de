"""Relations between methods: limits at which one is another, distances, saved work, and SADT's shared trunk."""

import math
import re
from functools import partial

import pytest
import torch
from support.many import asynchronous, halved, together
from support.small import BARE, bound, close, indexed, same, sgd, small_batch, small_net, trained
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import steppe
from steppe.core.numerics.filters import filter_noise
from steppe.methods import METHODS, card

LIMITS: list[tuple[steppe.Method, steppe.Method]] = [
    (steppe.MixedSAM(alpha=0.0), steppe.SAM()),
    (steppe.GSAM(alpha=0.0), steppe.SAM()),
    (steppe.ESAM(beta=1.0, gamma=1.0), steppe.SAM()),
    (steppe.LookSAM(rho=0.05, k=1), steppe.SAM()),
    (steppe.LookSAM(rho=0.05, k=3, alpha=0.0), steppe.ActiveWindow(steppe.SAM(), every=3)),
    (steppe.FriendlySAM(rho=0.05, sigma=0.0), steppe.SAM()),
    (steppe.WSAM(gamma=0.5, decoupled=False), steppe.SAM()),
    (steppe.RSAM(gamma=0.0), steppe.SAM()),
    (steppe.RWP(alpha=0.0), steppe.LPFSGD(gamma=0.01, M=1)),
    (steppe.RWP(gamma=0.0), steppe.Plain()),
    (steppe.ARWP(gamma=0.02, eta=0.0), steppe.RWP(gamma=0.02)),
    (steppe.SAF(start=0.99), steppe.Plain()),
    (steppe.MESA(start=0.99), steppe.Plain()),
    (steppe.On(steppe.SAM(), steppe.EMA()), steppe.SAM()),
    (steppe.On(steppe.SAM(), steppe.MESA(lam=0.0)), steppe.SAM()),
    (steppe.On(steppe.GC(), steppe.SAM()), steppe.On(steppe.SAM(), steppe.GC())),
    (steppe.SADT(variant=2, weight=0.0), steppe.RepeatStep()),
    (steppe.SADT(variant=3, weight=0.0), steppe.RepeatStep()),
]


@pytest.mark.parametrize(("method", "simpler"), LIMITS, ids=lambda m: repr(m))
def test_at_its_limit_a_method_is_another_bit_for_bit(method, simpler):
    assert same(trained(method), trained(simpler))


def perturbation(method: steppe.Method, **options: object) -> tuple[Tensor, list[Tensor]]:
    """Return the offset of the last pass from the weights, tensor by tensor, and as one vector."""
    net = small_net(dropout=0.0)
    weights: list[list[Tensor]] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        weights.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(z, y)

    method.bind(net, torch.optim.SGD(net.parameters(), 0.0), loss=loss, **options)(indexed(0))
    moved = [b - a for a, b in zip(weights[0], weights[-1], strict=True)]
    return torch.cat([m.flatten() for m in moved]), moved


def test_sam_perturbs_by_rho_and_several_ascents_end_higher_than_one():
    whole, _ = perturbation(steppe.SAM(rho=0.3))
    assert float(whole.norm()) == pytest.approx(0.3, rel=1e-4)
    whole, _ = perturbation(steppe.SAM(rho=0.3, ascents=4))
    assert float(whole.norm()) == pytest.approx(0.3, rel=1e-3)  # projected onto the ball
    for where in ("norm", "kernels", "bias"):  # the ball of some of the weights
        whole, _ = perturbation(steppe.SAM(rho=0.3, ascents=4, where=where))
        assert float(whole.norm()) == pytest.approx(0.3, rel=1e-3), where
    _, each = perturbation(steppe.SAM(rho=0.3, norm="tensor"))
    # the biases below BatchNorm have no gradient but rounding, and are normalised all the same
    assert all(float(m.norm()) == pytest.approx(0.3, rel=1e-3) for m in each if float(m.norm()) > 1e-3)
    losses: list[Tensor] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        losses.append(nn.functional.cross_entropy(z, y))
        return losses[-1]

    for ascents in (1, 5):
        bound(steppe.SAM(rho=0.5, ascents=ascents), small_net(dropout=0.0), loss=loss)[1](indexed(0))
    assert losses[-1] > losses[1]  # of 2 and 6 passes


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
    assert close(nets[0], nets[1], atol=1e-5)


def test_looksam_after_a_skipped_first_perturbation_is_plain():
    """There is no v yet, so the steps until the next perturbation are plain."""
    nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
    looksam, plain = steppe.LookSAM(k=3).bind(nets[0], sgd(nets[0])), steppe.Plain().bind(nets[1], sgd(nets[1]))
    bad = indexed(0)
    bad.x[0] = float("inf")
    assert looksam(bad).skipped
    for k in (1, 2):
        looksam(indexed(k))
        plain(indexed(k))
    assert same(nets[0], nets[1])


def flops(method: steppe.Method, seed: int = 0) -> int:
    _, step = bound(method, small_net(dropout=0.0), seed=seed)
    step(indexed(0))  # the first pass is whole, and its graph is inspected
    with FlopCounterMode(display=False) as counter:
        step(indexed(0))
    return counter.get_total_flops()


def test_esam_saves_backward_work_on_weights_and_samples():
    sam, half = flops(steppe.SAM()), flops(steppe.ESAM(beta=1.0, gamma=0.5))
    plain = flops(steppe.Plain())
    # a clean pass, a forward pass (a third), and half a pass
    assert half / plain == pytest.approx(1 + 1 / 3 + 0.5, rel=0.1)
    fewest = min(flops(steppe.ESAM(beta=0.3, gamma=1.0), seed) for seed in range(8))
    assert fewest < 0.9 * sam


@pytest.mark.parametrize("gamma", [0.01, 0.5])
def test_esam_survives_ties_and_tiny_shares(gamma):
    """With equal samples every rise is the same; the authors' code then chooses none and divides by zero."""
    net = small_net(dropout=0.0)
    x, _ = small_batch(count=1)
    step = steppe.ESAM(gamma=gamma).bind(net, sgd(net))
    assert not step(x.expand(12, -1, -1, -1).clone(), torch.zeros(12, dtype=torch.long)).skipped


def sharpest(loss: object, y: Tensor, gamma: float = 0.5) -> tuple[nn.Module, Tensor, steppe.Step]:
    """Return a network after a step of ESAM with a rate of 1, its weights before, and the step."""
    torch.manual_seed(0)
    net = nn.Linear(3, 4)
    before = net.weight.detach().clone()
    step = steppe.ESAM(rho=0.5, beta=1.0, gamma=gamma).bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=loss)
    assert not step(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), y).skipped
    return net, before, step


CLASSES = torch.tensor([0.05, 8.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (nn.functional.cross_entropy, None),
        (nn.CrossEntropyLoss(weight=CLASSES), CLASSES),
        (partial(nn.functional.cross_entropy, weight=CLASSES), CLASSES),
    ],
)
@pytest.mark.parametrize("ignored", [[], [0, 3], [0, 1, 2, 3, 5]])
def test_esam_ranks_what_each_sample_adds_to_the_loss(loss, weight, ignored):
    """Weights of classes count, and samples without a label come last: never do they make the loss NaN."""
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    y[ignored] = -100
    net, before, _ = sharpest(loss, y)
    x, w = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), before.requires_grad_()
    torch.manual_seed(0)
    b = nn.Linear(3, 4).bias
    ce = partial(nn.functional.cross_entropy, target=y, weight=weight)
    g = torch.autograd.grad(ce(x @ w.T + b), [w, b])
    length = torch.cat([t.flatten() for t in g]).norm()
    w2, b2 = (p.detach() + 0.5 * t / length for p, t in zip((w, b), g, strict=True))
    rise = ce(x @ w2.T + b2, reduction="none") - ce(x @ w.T + b, reduction="none")
    rise[ignored] = -float("inf")
    rows = rise.topk(4).indices
    w2.requires_grad_()
    (g2,) = torch.autograd.grad(nn.functional.cross_entropy(x[rows] @ w2.T + b2, y[rows], weight=weight), [w2])
    assert torch.allclose(net.weight, before - g2, atol=1e-5)


def test_esam_ranks_by_a_function_of_single_samples_if_the_loss_is_their_mean():
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    own, _, _ = sharpest(lambda z, y: nn.functional.cross_entropy(z, y), y)
    assert close(own, sharpest(nn.functional.cross_entropy, y)[0], atol=1e-6)
    weighted, _, _ = sharpest(lambda z, y: nn.functional.cross_entropy(z, y, weight=CLASSES), y)
    assert close(weighted, sharpest(nn.CrossEntropyLoss(weight=CLASSES), y)[0], atol=1e-6)
    with pytest.raises(steppe.InputError, match="is not the mean of these .*; give it the argument reduction"):
        sharpest(lambda z, y: nn.functional.cross_entropy(z, y, weight=CLASSES).sqrt(), y)


class Recomputed(nn.Module):
    """A network with a part that is checkpointed, reentrant or not; None keeps its activations."""

    def __init__(self, reentrant: bool | None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)])
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        def middle(x: Tensor) -> Tensor:
            return torch.tanh(self.layers[1](x))

        x = torch.tanh(self.layers[0](x))
        x = middle(x) if self.reentrant is None else checkpoint(middle, x, use_reentrant=self.reentrant)
        return self.layers[2](x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_esam_perturbs_the_same_weights_with_checkpointing_of_either_kind():
    def run(reentrant: bool | None) -> nn.Module:
        net = Recomputed(reentrant)
        step = steppe.ESAM(rho=0.5, beta=0.3).bind(net, torch.optim.SGD(net.parameters(), 0.1))
        for k in range(30):
            g = torch.Generator().manual_seed(k)
            step(torch.randn(8, 3, generator=g), torch.randint(0, 4, (8,), generator=g))
        return net

    assert all(same(run(None), run(reentrant)) for reentrant in (True, False))


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


def test_rwp_with_two_batches_takes_a_gradient_of_each_half_and_saf_stores_the_clean_one():
    net = small_net(dropout=0.0)
    targets: list[Tensor] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # not where the loss is checked to be a mean
            targets.append(y)
        return nn.functional.cross_entropy(z, y)

    x, y = small_batch()
    step = steppe.RWP(batches=2).bind(net, sgd(net), loss=loss)
    out = step(x, y)
    assert torch.equal(targets[0], y[:6])
    assert torch.equal(targets[1], y[6:])
    assert step.passes.per_step() == (1, 1, 1)
    assert len(out.logits) == 6
    _, step = bound(steppe.methods.parse("rwp:batches=2+saf:past=1"))
    for k in range(3):
        out = step(indexed(k))
    store = step.state["base"]
    assert store.visits[:6].tolist() == [3] * 6
    assert not store.visits[6:].any()
    assert torch.equal(store.values[:6, 0], out.logits)


@pytest.mark.parametrize("spec", ["rwp:batches=2", "rwp:batches=2,alpha=0", "esam", "lpf-sgd", "lpf-sgd:M=5"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_methods_that_cut_a_batch_leave_batch_norm_two_samples(spec, count):
    _, step = bound(steppe.methods.parse(spec))
    assert not step(indexed(0, count)).skipped


@pytest.mark.slow
def test_rwp_by_halves_of_the_processes_is_the_mean_of_clean_and_noisy():
    processes = together(3, halved, 0.3)
    for process in processes[1:]:
        assert all(map(torch.equal, processes[0]["values"], process["values"]))
    clean = [p["gradient"] for p in processes[::2]]
    noisy = [p["gradient"] for p in processes[1::2]]
    for i, moved in enumerate(processes[0]["moved"]):
        means = [torch.stack([g[i] for g in grads]).mean(0) for grads in (clean, noisy)]
        assert torch.allclose(moved, 0.3 * means[0] + 0.7 * means[1], atol=1e-6)
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
        ("averages+dml", "cannot train the several networks of DML: each average is evaluated as one network"),
        ("averages:decays=1", "decays is 1"),
    ],
)
def test_impossible_settings_are_refused(spec, message):
    with pytest.raises(steppe.InputError, match=message):
        steppe.methods.parse(spec)


@pytest.mark.parametrize("name", BARE)
def test_parameters_without_a_gradient_get_neither_weight_decay_nor_noise(name):
    net = small_net()
    net.idle = nn.Parameter(torch.randn(3))
    idle = net.idle.detach().clone()
    steppe.make(name).bind(net, sgd(net))(*small_batch())
    assert torch.equal(net.idle, idle)


@pytest.mark.parametrize("name", METHODS)
def test_the_declared_cost_is_that_of_the_card(name):
    """The conformance suite compares the declared cost with hooks."""
    method, cost = steppe.make(name), next(line for line in card(name).splitlines() if line.startswith("Cost"))
    forward, backward, updates = map(int, re.findall(r"\d+", cost)[:3])
    variant = re.search(rf"variant {getattr(method, 'variant', 0)}: (\d) forward, (\d) backward", cost)
    stated = (int(variant[1]), int(variant[2]), updates) if variant else (forward, backward, updates)
    if name == "esam":  # with gamma, which is below 1 by default
        stated = (2 + method.gamma, 1 + method.gamma, 1)
    assert method.cost == stated


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_sadt_v2_shares_its_trunk_and_gives_the_gradient_of_whole_passes(dropout: float):
    """The shared form against whole passes, in float64, with BatchNorm and the same dropout masks."""

    class Whole(nn.Module):  # not a Sequential: every teacher takes a whole pass
        def __init__(self, net: nn.Sequential):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(x)
            return z

    shared, whole = small_net(0, torch.float64, dropout), Whole(small_net(0, torch.float64, dropout))
    # large noise, so that the two teachers differ from each other and from the network
    steps = [
        steppe.SADT(variant=2, sigma=0.3).bind(n, torch.optim.SGD(n.parameters(), 0.1)) for n in (shared, whole)
    ]
    for k in range(3):
        for step in steps:
            torch.manual_seed(k)
            step(*small_batch(seed=k, dtype=torch.float64))
    assert close(shared, whole.net, rtol=1e-9, atol=1e-9)
    assert steps[0].passes.backward < 0.9 * steps[1].passes.backward
    assert steps[1].passes.per_step() == (3, 3, 2)


def test_sadt_v2_counts_the_work_that_it_does():
    """The counted passes are the multiply-adds of the step in units of a plain one's."""
    _, step = bound(steppe.SADT(variant=2), small_net(dropout=0.0))
    step(indexed(0))
    with FlopCounterMode(display=False) as counter:
        step(indexed(0))
    passes = step.passes.backward / step.passes.steps
    assert counter.get_total_flops() / flops(steppe.Plain()) == pytest.approx(passes, rel=0.05)


@pytest.mark.parametrize(("lam1", "lam2"), [(1.0, 1.0), (-2.0, 2.0)])
def test_ae_sam_perturbs_the_steps_with_unusually_long_gradients_only(lam1, lam2):
    """The decisions of the paper's algorithm 1, written out over the lengths of the gradients that it met."""
    gradients: list[float] = []
    _, step = bound(steppe.make("ae-sam", lam1=lam1, lam2=lam2), small_net(dropout=0.0), steps=12)
    grad, forward = step.runtime.grad, [0.0]

    def recorded(*args, **options):
        out, g = grad(*args, **options)
        gradients.append(float(torch.cat([t.flatten() for t in g]).norm()))
        return out, g

    step.runtime.grad = recorded
    mean, variance, expected, counted = 0.0, math.exp(-10), [], []
    for k in range(12):
        gradients.clear()
        step(indexed(k))
        square = gradients[0] ** 2
        mean = 0.9 * mean + 0.1 * square
        variance = 0.9 * variance + 0.1 * (square - mean) ** 2
        threshold = lam2 + (lam1 - lam2) * k / 12  # from lam2 to lam1 over the training
        expected.append(2 if square >= mean + threshold * variance**0.5 else 1)
        counted.append(step.passes.forward - forward[-1])
        forward.append(step.passes.forward)
    assert counted == expected and set(counted) == {1, 2}


def test_ae_sam_needs_the_length_of_the_training_for_its_threshold():
    for start in ("", ":start=3"):
        with pytest.raises(
            steppe.InputError, match="from lam2 to lam1 over the training, and its length is unknown"
        ):
            bound(steppe.parse(f"ae-sam{start}"))


def test_le_sam_s_perturbation_raises_the_loss_by_sigma_to_first_order_and_is_at_most_rho_long():
    net = small_net(dropout=0.0)
    loss = nn.functional.cross_entropy(net(indexed(0).x), indexed(0).y)
    g = torch.cat([t.flatten() for t in torch.autograd.grad(loss, list(net.parameters()))])
    for sigma, rho in ((1e-3, 10.0), (10.0, 0.02)):
        e, _ = perturbation(steppe.make("le-sam", sigma=sigma, rho=rho))
        assert float(e.norm()) == pytest.approx(min(sigma / float(g.norm()), rho), rel=2e-3)


def test_the_sigma_of_le_sam_is_one_for_the_whole_loss_and_may_be_that_of_all_groups():
    nets = [small_net(dropout=0.0) for _ in range(2)]
    for net, method, sigma in zip(
        nets, ("le-sam:sigma=0.3,rho=9", "le-sam:rho=9"), ({}, {"sigma": 0.3}), strict=True
    ):
        groups = [{"params": [p], **sigma} for p in net.parameters()]
        steppe.parse(method).bind(net, torch.optim.SGD(groups, 0.1))(indexed(0))
    assert all(map(torch.equal, nets[0].state_dict().values(), nets[1].state_dict().values()))
    first, *others = nets[0].parameters()
    groups = [{"params": [first], "sigma": 0.1}, {"params": others}]
    step = steppe.parse("le-sam").bind(nets[0], torch.optim.SGD(groups, 0.1))
    with pytest.raises(steppe.InputError, match="sigma is of the whole loss, and parameter groups have several"):
        step(indexed(0))


@pytest.mark.slow
def test_asynchronous_sam_by_halves_updates_on_the_even_and_looks_ahead_on_the_odd_processes():
    processes = together(3, asynchronous)
    for process in processes[1:]:
        assert all(map(torch.equal, processes[0]["values"], process["values"]))
    # weights by samples: 4 and 6 on the even processes, 5 on the odd one
    first, second = ([p["gradients"][k] for p in processes] for k in (0, 1))
    for i, moved in enumerate(processes[0]["moved"]):
        mean = (4 * second[0][i] + 6 * second[2][i]) / 10
        assert torch.allclose(moved, mean, atol=1e-6)
    h = torch.cat([t.flatten() for t in first[1]])
    for p, length in zip(processes, (0.3, 0.0, 0.3), strict=True):
        e = torch.cat([t.flatten() for t in p["offset"]])
        assert float(e.norm()) == pytest.approx(length, rel=1e-4)
        assert not length or float(e @ h / h.norm()) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("targets", ["classes", "shares", "ignored", "weighed"])
def test_methods_for_imbalance_take_the_sizes_of_the_data_and_every_form_of_targets(targets):
    """Where all classes are small, ImbSAM is SAM; where none is, Plain; Focal-SAM of gamma 0 and lam 1 is SAM."""

    def ends(method: steppe.Method, sizes: list[int] | None) -> nn.Module:
        net = small_net(dropout=0.0)
        loss = nn.CrossEntropyLoss(weight=torch.arange(1.0, 6.0) if targets == "weighed" else None)
        step = method.bind(net, sgd(net), loss=loss)
        if sizes:
            y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
            step.method.observe_targets(step.state, y)
        for k in range(3):
            x, y = small_batch(k)
            if targets == "shares":
                y = 0.7 * nn.functional.one_hot(y, 5).float() + 0.06
            y[:3] = -100 if targets == "ignored" else y[:3]
            step(x, y)
        return net

    sam = ends(steppe.SAM(rho=0.1), None)
    assert close(ends(steppe.make("imbsam", rho=0.1, small=9), [5, 4, 3, 2, 1]), sam, rtol=1e-4, atol=1e-6)
    assert close(ends(steppe.make("focal-sam", rho=0.1, gamma=0, lam=1), None), sam, rtol=1e-4, atol=1e-6)
    plain, even = ends(steppe.Plain(), None), [4, 4, 4, 4, 4]
    assert close(ends(steppe.make("imbsam", rho=0.1), even), plain, rtol=1e-4, atol=1e-6)
    assert not close(ends(steppe.make("imbsam", rho=0.1), [9, 1, 9, 9, 9]), plain, rtol=1e-4, atol=1e-6)


def test_methods_for_imbalance_need_a_class_per_sample():
    net = nn.Conv2d(2, 5, 1)
    step = steppe.ImbSAM().bind(net, sgd(net))
    with pytest.raises(steppe.InputError, match="a class per sample is needed"):
        step(small_batch()[0], torch.zeros(12, 6, 6, dtype=torch.long))
    line = nn.Linear(2, 1)
    flat = nn.Sequential(line, nn.Flatten(0))  # logits (B,)
    step = steppe.FocalSAM().bind(flat, sgd(flat), loss=nn.functional.binary_cross_entropy_with_logits)
    with pytest.raises(steppe.InputError, match="logits of shape .4,., and a class per sample is needed"):
        step(torch.randn(4, 2), torch.ones(4))
    at_limit = steppe.ImbSAM(rho=0).bind(line, sgd(line), loss=nn.functional.mse_loss)
    assert not at_limit(torch.randn(4, 2), torch.randn(4, 1)).skipped


@pytest.mark.parametrize("name", ["imbsam", "focal-sam"])
@pytest.mark.parametrize(
    ("outputs", "loss", "message"),
    [
        (1, nn.functional.mse_loss, "some of several classes, and the outputs are 1 numbers; use sam"),
        (3, nn.functional.binary_cross_entropy_with_logits, "the outputs are 3 labels; use sam"),
    ],
)
def test_methods_for_small_classes_need_classes(name, outputs, loss, message):
    net = nn.Linear(4, outputs)
    step = steppe.make(name).bind(net, torch.optim.SGD(net.parameters(), 0.1), loss=loss)
    with pytest.raises(steppe.InputError, match=message):
        step(torch.ones(6, 4), torch.eye(6)[:, :outputs])
