"""Methods of whole networks: who feels whose gradient, what they reduce to, how the hybrid is made and fused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.cohorts import Staged, images, maker, views
from support.small import sgd
from torch import nn

import steppe
from steppe.methods.online_distillation._okdph_presets import PRESETS
from steppe.models.multi.ensemble import Ensemble
from steppe.models.multi.hybrid import HybridEnsemble


def bound(method: steppe.Method, dtype: torch.dtype = torch.float32, **options: object):
    net = method.build(maker(Staged, dtype=dtype))
    return net, method.bind(net, sgd(net), **options)


APART = [
    steppe.DML(networks=3, lam=0.0),
    steppe.KDCL(networks=3, lam=0.0, ce=1.0),
    steppe.OKDPH(networks=3, omega=1.0, beta=0.0, gamma=0.0, same_start=False),
]


@pytest.mark.parametrize("method", APART, ids=repr)
def test_without_its_pulls_each_network_trains_as_if_alone_bit_for_bit(method):
    net, step = bound(method)
    alone = [copy.deepcopy(n) for n in net.networks]
    steps = [steppe.Plain().bind(n, sgd(n)) for n in alone]
    for k in range(5):
        batch = views(4, k)
        step(batch)
        for m, one in enumerate(steps):
            one(batch.x if m == 0 else batch.extra[f"view {m + 1}"], batch.y)
    for ours, theirs in zip(net.networks, alone, strict=True):
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), key


@pytest.mark.parametrize(
    "method",
    [steppe.DML(lam=5.0), steppe.KDCL(lam=5.0), steppe.OKDPH(gradient="none", gamma=0.0, same_start=False)],
    ids=repr,
)
def test_a_network_s_gradient_is_that_of_its_own_loss_alone(method):
    """Freeze one network: the other's update must not change, whatever the frozen one would have felt."""
    ends = []
    for frozen in (False, True):
        net, _ = bound(method)
        net.networks[1].requires_grad_(not frozen)
        step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1))
        step(images())
        ends.append([p.detach().clone() for p in net.networks[0].parameters()])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("gradient", "factor"), [("none", 0.0), ("chain", 0.25), ("full", 1.0)])
def test_the_hybrid_is_felt_as_the_mode_says(gradient, factor):
    """With omega = beta = 0 a student's gradient is the hybrid's times the factor; r is uneven on purpose."""
    net = HybridEnsemble([maker(Staged, 7, torch.float64)() for _ in range(2)], gradient)
    net.networks[1].load_state_dict(maker(Staged, 8, torch.float64)().state_dict())
    batch, mix = images(dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64)
    *_, hybrid = net(batch.x, mix=mix)
    mixed = copy.deepcopy(net.networks[0])
    with torch.no_grad():
        for p, a, b in zip(mixed.parameters(), *(n.parameters() for n in net.networks), strict=True):
            p.copy_(0.25 * a + 0.75 * b)
    z = mixed(batch.x)
    assert torch.allclose(hybrid, z, rtol=1e-12, atol=1e-12)
    F.cross_entropy(z, batch.y).backward()
    loss = F.cross_entropy(hybrid, batch.y)
    if factor == 0:
        assert not loss.requires_grad
        return
    loss.backward()
    for p, q in zip(net.networks[0].parameters(), mixed.parameters(), strict=True):
        assert torch.allclose(p.grad, factor * q.grad, rtol=1e-9, atol=1e-12)


def test_chain_is_autograd_through_the_mixture():
    """The whole objective, written as one function of all students' weights and differentiated by autograd."""
    method = steppe.OKDPH(networks=3, omega=0.4, beta=0.7, gamma=0.0, T=3.0, same_start=False)
    net = method.build(maker(Staged, dtype=torch.float64))
    other = copy.deepcopy(net)
    batch = views(4, dtype=torch.float64)
    method.bind(net, torch.optim.SGD(net.parameters(), 1.0))(batch)

    xs = [batch.x, *(batch.extra[f"view {i}"] for i in (2, 3, 4))]
    own = [dict(n.named_parameters()) for n in other.networks]
    mixture = {k: sum(w[k] for w in own) / 3 for k in own[0]}
    said = [n(x) for n, x in zip(other.networks, xs, strict=False)]
    hybrid = torch.func.functional_call(copy.deepcopy(other.networks[0]), mixture, (xs[3],))
    target = torch.stack([*said, hybrid]).mean(0).detach()
    p = torch.softmax(target / 3, 1)
    loss = 0.6 * F.cross_entropy(hybrid, batch.y)
    for z in said:
        loss = loss + 0.4 * F.cross_entropy(z, batch.y)
        loss = loss + 0.7 * 9 * (p * (p.log() - F.log_softmax(z / 3, 1))).sum(1).mean()
    loss.backward()
    for (key, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b - b.grad, rtol=1e-10, atol=1e-12), key


def test_fusion_moves_weights_and_running_statistics_and_nothing_else():
    for gamma in (0.0, 0.3, 1.0):
        net = HybridEnsemble([maker(Staged, s)() for s in (0, 50)], "chain")
        for k, n in enumerate(net.networks):
            n(images(k).x)
            n.bn1.num_batches_tracked.fill_(k + 3)
        before = [copy.deepcopy(n.state_dict()) for n in net.networks]
        net.fuse(gamma)
        for m, n in enumerate(net.networks):
            for key, value in n.state_dict().items():
                old = before[m][key]
                if "num_batches" in key:
                    assert torch.equal(value, old)
                else:
                    centre = (before[0][key] + before[1][key]) / 2
                    assert torch.allclose(value, gamma * centre + (1 - gamma) * old, atol=1e-6), key
                if gamma == 0:
                    assert torch.equal(value, old)
        if gamma == 1:
            assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in net.networks), strict=True))


@pytest.mark.parametrize("microbatch", [None, 5])
def test_fusing_what_was_there_before_the_update_throws_it_away(microbatch):
    method = steppe.OKDPH(gamma=1.0, every="1b", fuse="before", same_start=False)
    net, step = bound(method, microbatch=microbatch)
    centre = {k: v.clone() for k, v in net.hybrid().items()}
    for k in range(2):
        step(images(k))
        for n in net.networks:
            assert all(torch.equal(p, centre[name]) for name, p in n.named_parameters())
            assert torch.equal(n.bn1.running_var, centre["bn1.running_var"])
    assert net.earlier is None


def test_fusions_fall_where_the_released_code_has_them():
    batches = steppe.OKDPH(every="5b")
    assert sum(batches.due(i, 391) for i in range(391)) == 79
    assert [i for i in range(391, 411) if batches.due(i, 391)] == [391, 396, 401, 406]
    assert [i for i in range(12) if batches.due(i, None)] == [0, 5, 10]
    epochs = steppe.OKDPH(every="3e")
    assert [i for i in range(80) if epochs.due(i, 10)] == [9, 39, 69]  # after epochs 0, 3 and 6
    with pytest.raises(steppe.InputError, match=r"every is '3e' .* bind with epoch="):
        bound(epochs)[1](images())


def test_a_dirichlet_draw_belongs_to_a_step_and_is_on_the_simplex():
    method = steppe.OKDPH(networks=3, mixing="dirichlet")
    draws = []
    for seed in (1, 1, 2):
        _, step = bound(method, seed=seed)
        seen = []
        for k in range(4):
            step(images(k))
            now = method.shares(step.runtime)
            assert torch.equal(now, method.shares(step.runtime))
            assert float(now.sum()) == pytest.approx(1)
            assert float(now.min()) > 0
            seen.append(now)
        draws.append(torch.stack(seen))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(draws[0].unique(dim=0)) == 4


def test_dirichlet_draws_are_uniform_on_the_simplex():
    method = steppe.OKDPH(networks=3, mixing="dirichlet", gamma=0.0)
    _, step = bound(method)
    rt, drawn = step.runtime, []
    for _ in range(4000):
        rt.passes.steps += 1
        drawn.append(method.shares(rt))
    r = torch.stack(drawn)
    # Dir(1, 1, 1): mean 1/3, variance 1/18, and each share's own law is 1 - (1 - r)^2
    assert torch.allclose(r.mean(0), torch.full((3,), 1 / 3, dtype=r.dtype), atol=0.015)
    assert torch.allclose(r.var(0), torch.full((3,), 1 / 18, dtype=r.dtype), atol=0.005)
    assert float((r[:, 0] < 0.5).double().mean()) == pytest.approx(0.75, abs=0.03)


def test_students_start_equal_or_not_as_asked():
    for same in (True, False):
        a, b = steppe.OKDPH(same_start=same).build(maker(Staged)).networks
        assert torch.equal(a.fc.weight, b.fc.weight) == same
        assert a.fc.weight.data_ptr() != b.fc.weight.data_ptr()


SIX = """
resnet32 resnet110 vgg16 densenet40-12 wrn20-8 resnet32-3 resnet32-4 vgg16-3 vgg16-4
cifar10   0.8 0.8 0.3 0.8 0.8 0.8 0.8 0.8 0.3
          0.8 0.8 0.3 0.8 0.8 0.8 0.8 0.8 0.3
          0.5 0.5 1.0 0.5 0.5 0.5 0.5 0.5 1.0
          1e  5b  1e  5b  1e  1e  5b  1e  1e
cifar100  1.0 0.8 0.3 1.0 0.5 1.0 1.0 0.3 0.3
          0.5 0.8 0.3 0.5 0.5 0.5 0.5 0.3 0.3
          1.0 0.5 1.0 0.5 0.5 1.0 1.0 1.0 1.0
          5b  5b  1e  5b  5b  5b  5b  3e  2e
"""
SEVEN = """
cifar10-noisy  0.8 0.8 0.5 5b  0.3 0.3 1.0 1e  0.8 0.8 0.5 5b
cifar10-10%    1.0 0.5 1.0 5b  0.3 0.3 1.0 1e  0.8 0.8 0.5 5b
cifar10-1%     1.0 0.5 0.5 5b  0.3 0.3 1.0 1e  0.8 0.8 0.5 5b
cifar100-noisy 1.0 0.0 0.5 5b  0.3 0.3 1.0 1e  1.0 0.5 0.5 5b
cifar100-10%   0.5 0.5 1.0 5b  0.3 0.3 1.0 1e  1.0 0.5 0.5 5b
cifar100-1%    1.0 0.5 0.5 5b  0.8 0.8 1.0 1e  0.8 0.8 0.5 5b
"""


def printed() -> dict[str, tuple[float, float, float, str]]:
    """Return the supplement's tables 6 and 7, which are printed row by row, as entries by name."""
    found = {}
    nets, *lines = SIX.strip().splitlines()
    for i in (0, 4):
        data, *first = lines[i].split()
        columns = zip(first, *(line.split() for line in lines[i + 1 : i + 4]), strict=True)
        found |= {f"{data}-{net}": column for net, column in zip(nets.split(), columns, strict=True)}
    for line in SEVEN.strip().splitlines():
        name, *values = line.split()
        for k, net in enumerate(("resnet32", "vgg16", "densenet40-12")):
            found[f"{name}-{net}"] = tuple(values[4 * k : 4 * k + 4])
    return {name: (float(o), float(b), float(g), every) for name, (o, b, g, every) in found.items()}


def test_presets_are_the_supplement_s_tables():
    assert printed() == PRESETS
    method = steppe.OKDPH(preset="cifar100-vgg16-3")
    assert (method.omega, method.beta, method.gamma, method.every) == (0.3, 0.3, 1.0, "3e")
    assert steppe.OKDPH(preset="cifar100-noisy-resnet32").beta == 0.0
    assert steppe.OKDPH(preset="cifar10-wrn20-8", gamma=0.1).gamma == 0.1
    with pytest.raises(steppe.InputError, match="did you mean 'cifar10-vgg16'"):
        steppe.OKDPH(preset="cifar10-vgg61")


def test_each_network_sees_its_own_view_and_the_hybrid_the_last():
    method = steppe.OKDPH(same_start=False, gamma=0.0, beta=0.0, omega=0.5)
    net, step = bound(method)
    seen = []
    for n in net.networks:
        n.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = views(3)
    step(batch)
    assert [torch.equal(s, x) for s, x in zip(seen, [batch.x, *batch.extra.values()], strict=True)] == [True] * 3
    with pytest.raises(steppe.InputError, match="the batch has 2 views of each sample and the method takes 3"):
        step(views(2))


@pytest.mark.parametrize("method", [steppe.DML(), steppe.KDCL(), steppe.OKDPH()], ids=repr)
def test_only_what_the_method_builds_is_bound(method):
    net = Staged()
    with pytest.raises(steppe.InputError, match=r"was bound to Staged; bind what it builds"):
        method.bind(net, sgd(net))
    three = type(method)(networks=3).build(maker(Staged))
    with pytest.raises(steppe.InputError, match="networks is 2 and the model was built with 3"):
        method.bind(three, sgd(three))
    if not isinstance(method, steppe.OKDPH):
        with pytest.raises(steppe.InputError, match="returns the same network again"):
            method.build(lambda net=net: net)


def test_networks_of_different_kinds_learn_from_each_other_but_do_not_mix():
    kinds = iter([Staged(), nn.Sequential(nn.Flatten(), nn.Linear(128, 5))])
    net = steppe.DML().build(lambda: next(kinds))
    losses = [float(step(images()).loss) for step in [steppe.DML().bind(net, sgd(net))] for _ in range(5)]
    assert losses[-1] < losses[0]
    kinds = iter([Staged(), nn.Sequential(nn.Flatten(), nn.Linear(128, 5))])
    with pytest.raises(steppe.InputError, match="one architecture"):
        steppe.OKDPH(same_start=False).build(lambda: next(kinds))


def test_sam_looks_at_all_networks_together():
    """A's step on B's objective: both passes see the sum of all losses, at one perturbation of all weights."""
    method = steppe.On(steppe.SAM(rho=0.1), steppe.DML())
    net, step = bound(method, torch.float64)
    other = copy.deepcopy(net)
    batch = images(dtype=torch.float64)
    step(batch)

    def gradient() -> list[torch.Tensor]:
        a, b = (n(batch.x) for n in other.networks)
        loss = F.cross_entropy(a, batch.y) + F.cross_entropy(b, batch.y)
        for z, t in ((a, b.detach()), (b, a.detach())):
            loss = loss + F.kl_div(F.log_softmax(z, 1), F.softmax(t, 1), reduction="batchmean")
        return list(torch.autograd.grad(loss, list(other.parameters())))

    params = list(other.parameters())
    g = gradient()
    length = torch.stack([t.square().sum() for t in g]).sum().sqrt()
    start = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, t in zip(params, g, strict=True):
            p.add_(0.1 * t / length)
    g = gradient()
    for w, t, q in zip(start, g, net.parameters(), strict=True):
        d = t + 1e-2 * w
        assert torch.allclose(q, w - 0.1 * (d + 0.9 * d), rtol=1e-9, atol=1e-10)


def test_what_is_reported_is_each_network():
    net, step = bound(steppe.OKDPH(same_start=False, deploy="hybrid"))
    step(images())
    net.eval()
    x = images(9).x
    with torch.no_grad():
        found = steppe.OKDPH(same_start=False, deploy="hybrid").outputs(net, step.state, x)
        said = [n(x) for n in net.networks]
    assert list(found) == ["deployed", "network 1", "network 2", "ensemble", "hybrid"]
    for m, z in enumerate(said, 1):
        assert torch.equal(found[f"network {m}"], z)
    assert torch.allclose(found["ensemble"], torch.stack(said).mean(0))
    assert torch.equal(found["deployed"], found["hybrid"])
    assert torch.equal(step.predict(x), found["hybrid"])


def test_one_network_is_built_as_it_is():
    for method in (steppe.DML(networks=1), steppe.KDCL(networks=1), steppe.OKDPH(networks=1)):
        assert isinstance(method.build(Staged), Staged)
    assert isinstance(steppe.DML().build(maker(Staged)), Ensemble)


@pytest.mark.parametrize("mean", [steppe.EMA(decay=0.9), steppe.SWA(start=0)], ids=lambda m: type(m).__name__)
def test_a_mean_of_all_weights_deploys_the_first_network_of_the_mean(mean):
    method = steppe.On(mean, steppe.DML())
    net, step = bound(method)
    for k in range(4):
        step(images(k))
    x = images(9).x
    net.eval()
    with torch.no_grad():
        predicted, found = step.predict(x), method.outputs(net, step.state, x)
        with step.state.get_submodule("rule").swapped_in(net):
            expected = [n(x) for n in net.networks]
    assert torch.equal(predicted, expected[0])
    assert torch.equal(found["network 2"], expected[1])
    assert not torch.equal(predicted, net.networks[0](x))
    alone = method.deployed_model(net, step.state, maker(Staged)).eval()
    assert torch.equal(alone(x), predicted)


def test_what_builds_its_model_cannot_come_and_go():
    with pytest.raises(steppe.InputError, match="DML builds what it trains .* leave start, stop and every out"):
        steppe.make("dml", start=5)
    steppe.make("sam", start=5)


def test_methods_with_objectives_of_their_own_are_refused_on_several_networks():
    method = steppe.On(steppe.SADT(), steppe.DML())
    _, step = bound(method)
    with pytest.raises(steppe.InputError, match="the model returned tuple without logits"):
        step(images())
