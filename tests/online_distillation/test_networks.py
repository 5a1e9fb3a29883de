"""Methods of whole networks: their gradients, their limits, how the hybrid is mixed and fused."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.cohorts import Staged, images, maker, views
from support.small import sgd, small_batch, small_net
from torch import nn

import steppe
from steppe.core.method import overrides
from steppe.methods import METHODS
from steppe.models.multi.hybrid import HybridEnsemble


def bound(method: steppe.Method, dtype: torch.dtype = torch.float32, **options: object):
    net = method.build(maker(Staged, dtype=dtype))
    return net, method.bind(net, sgd(net), **options)


INDEPENDENT = [
    steppe.DML(networks=3, lam=0.0),
    steppe.KDCL(networks=3, lam=0.0, ce=1.0),
    steppe.OKDPH(networks=3, omega=1.0, beta=0.0, gamma=0.0, same_start=False),
]


@pytest.mark.parametrize("method", INDEPENDENT, ids=repr)
def test_without_distillation_each_network_trains_bitwise_as_alone(method):
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


def test_fusion_moves_weights_and_running_statistics_and_nothing_else():
    for gamma in (0.0, 0.3, 1.0):
        net = HybridEnsemble([maker(Staged, s)() for s in (0, 50)], "chain")
        for k, n in enumerate(net.networks):
            n(images(k).x)
            n.bn1.num_batches_tracked.fill_(k + 3)
        net(images(4).x)
        before = [copy.deepcopy(n.state_dict()) for n in net.networks]
        hybrid = net.hybrid()
        assert not torch.allclose(hybrid["bn1.running_var"], torch.ones(4))  # the hybrid's own pass
        net.fuse(gamma)
        for m, n in enumerate(net.networks):
            for key, value in n.state_dict().items():
                old = before[m][key]
                if "num_batches" in key:
                    assert torch.equal(value, old)
                else:
                    centre = hybrid[key] if "running" in key else (before[0][key] + before[1][key]) / 2
                    assert torch.allclose(value, gamma * centre + (1 - gamma) * old, atol=1e-6), key
                if gamma == 0:
                    assert torch.equal(value, old)
        if gamma == 1:
            assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in net.networks), strict=True))


@pytest.mark.parametrize("microbatch", [None, 5])
def test_fusing_before_the_update_is_the_released_code(microbatch):
    """The hybrid is the students' mean, statistics too; it passes the batch and is fused after the update."""
    method = steppe.OKDPH(gamma=1.0, every="1b", fuse="before", same_start=False)
    net, step = bound(method, microbatch=microbatch)
    for k in range(2):
        code = copy.deepcopy(net.networks[0])
        states = [n.state_dict() for n in net.networks]
        code.load_state_dict({key: (t + states[1][key]) / 2 for key, t in states[0].items()})
        for part in images(k).cut(3 if microbatch else 1):
            code(part.x)
        step(images(k))
        for n in net.networks:
            assert all(torch.allclose(p, code.get_parameter(name)) for name, p in n.named_parameters())
            for name in ("bn1.running_mean", "bn1.running_var", "layer3.1.running_var"):
                assert torch.allclose(n.get_buffer(name), code.get_buffer(name), atol=1e-6), name
    assert step.state.weights is None


def test_fusions_fall_where_the_released_code_has_them():
    batches = steppe.OKDPH(every="5b")
    assert sum(batches.due(i, 391) for i in range(391)) == 79
    assert [i for i in range(391, 411) if batches.due(i, 391)] == [391, 396, 401, 406]
    assert [i for i in range(12) if batches.due(i, None)] == [0, 5, 10]
    epochs = steppe.OKDPH(every="3e")
    assert [i for i in range(80) if epochs.due(i, 10)] == [9, 39, 69]  # after epochs 0, 3 and 6
    with pytest.raises(steppe.InputError, match=r"every is '3e' .* bind with epoch="):
        bound(epochs)[1](images())


def test_dirichlet_shares_are_a_function_of_seed_and_step_and_uniform_on_the_simplex():
    method = steppe.OKDPH(networks=3, mixing="dirichlet", gamma=0.0)

    def shares(seed: int, count: int) -> torch.Tensor:
        rt, rows = bound(method, seed=seed)[1].runtime, []
        for _ in range(count):
            rt.passes.steps += 1
            rows.append(method.shares(rt))
            assert torch.equal(rows[-1], method.shares(rt))
        return torch.stack(rows)

    r = shares(1, 4000)
    assert torch.equal(r[:4], shares(1, 4)) and not torch.equal(r[:4], shares(2, 4))
    assert torch.allclose(r.sum(1), torch.ones(4000, dtype=r.dtype)) and float(r.min()) > 0
    # Dir(1, 1, 1): mean 1/3, variance 1/18, and each share's own law is 1 - (1 - r)^2
    assert torch.allclose(r.mean(0), torch.full((3,), 1 / 3, dtype=r.dtype), atol=0.015)
    assert torch.allclose(r.var(0), torch.full((3,), 1 / 18, dtype=r.dtype), atol=0.005)
    assert float((r[:, 0] < 0.5).double().mean()) == pytest.approx(0.75, abs=0.03)


def test_students_start_equal_only_with_same_start():
    for settings, same in (({"same_start": True}, True), ({}, False), ({"preset": "cifar10-vgg16"}, True)):
        a, b = steppe.OKDPH(**settings).build(maker(Staged)).networks
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


def printed() -> dict[str, tuple[str, ...]]:
    """Return the supplement's tables 6 and 7, which are printed row by row, as entries by name."""
    entries: dict[str, tuple[str, ...]] = {}
    nets, *lines = SIX.strip().splitlines()
    for i in (0, 4):
        data, *first = lines[i].split()
        columns = zip(first, *(line.split() for line in lines[i + 1 : i + 4]), strict=True)
        entries |= {f"{data}-{net}": column for net, column in zip(nets.split(), columns, strict=True)}
    for line in SEVEN.strip().splitlines():
        name, *values = line.split()
        for k, net in enumerate(("resnet32", "vgg16", "densenet40-12")):
            entries[f"{name}-{net}"] = tuple(values[4 * k : 4 * k + 4])
    return entries


def test_presets_are_the_supplement_s_tables():
    for name, (omega, beta, gamma, every) in printed().items():
        students = int(name[-1]) if name.endswith(("-3", "-4")) else 2
        method = steppe.OKDPH(networks=students, preset=name)
        values = tuple(getattr(method.resolved, field) for field in ("omega", "beta", "gamma", "every"))
        assert values == (float(omega), float(beta), float(gamma), every), name
    assert steppe.OKDPH(preset="cifar10-wrn20-8", gamma=0.1).resolved.gamma == 0.1
    with pytest.raises(steppe.InputError, match="did you mean 'cifar10-vgg16'"):
        steppe.OKDPH(preset="cifar10-vgg61")
    with pytest.raises(steppe.InputError, match="networks is 2; give 3, as cifar10-vgg16-3 has"):
        steppe.OKDPH(preset="cifar10-vgg16-3")
    assert steppe.OKDPH(networks=1, preset="cifar10-vgg16-3").limit is not None


def test_each_network_gets_its_own_view_and_the_hybrid_the_last():
    method = steppe.OKDPH(same_start=False, gamma=0.0, beta=0.0, omega=0.5)
    net, step = bound(method)
    inputs = []
    for n in net.networks:
        n.conv1.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batch = views(3)
    step(batch)
    assert [torch.equal(s, x) for s, x in zip(inputs, [batch.x, *batch.extra.values()], strict=True)] == [True] * 3
    with pytest.raises(steppe.InputError, match="the batch has 2 views of each sample and the method takes 3"):
        step(views(2))


@pytest.mark.parametrize("method", [steppe.DML(), steppe.KDCL(), steppe.PCL(branches=2, ramp=0)], ids=repr)
@pytest.mark.parametrize("microbatch", [None, 5])
def test_views_of_named_inputs_are_views_of_the_tensors(method, microbatch):
    class Named(Staged):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels)

    batch = views(2)
    named = [{"pixels": t} for t in (batch.x, batch.extra["view 2"])]
    weights = []
    for kind, x, second in ((Staged, batch.x, batch.extra["view 2"]), (Named, *named)):
        net = method.build(maker(kind))
        step = method.bind(net, sgd(net), microbatch=microbatch)
        step(steppe.Batch(x, batch.y, extra={"view 2": second}))
        weights.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("name", ["view2", "view_2", "view 1", "view 3", "View 2"])
@pytest.mark.parametrize("method", [steppe.DML(), steppe.PCL(branches=2)], ids=lambda m: type(m).__name__)
def test_a_view_of_another_name_is_refused(method, name):
    net = method.build(maker(Staged))
    batch = images()
    with pytest.raises(
        steppe.InputError, match=f"extra has '{name}'; the first view is x, name the others 'view 2'"
    ):
        method.bind(net, sgd(net), steps=10)(steppe.Batch(batch.x, batch.y, extra={name: batch.x}))


@pytest.mark.parametrize("name", [name for name in METHODS if overrides(steppe.make(name), "build")])
def test_only_what_the_method_builds_is_bound(name):
    method, net = steppe.make(name), Staged()
    with pytest.raises(steppe.InputError, match="was bound to Staged; bind what it builds"):
        method.bind(net, sgd(net))
    count = "networks" if hasattr(method, "networks") else "branches"
    assert isinstance(steppe.make(name, **{count: 1}).build(Staged), Staged)
    if count == "branches":
        return
    three = steppe.make(name, networks=3).build(maker(Staged))
    with pytest.raises(steppe.InputError, match="networks is 2 and the model was built with 3"):
        method.bind(three, sgd(three))
    if name != "okdph":  # which copies one network
        with pytest.raises(steppe.InputError, match="returns the same network again"):
            method.build(lambda: net)


def test_networks_of_different_kinds_learn_from_each_other_but_do_not_mix():
    kinds = iter([Staged(), nn.Sequential(nn.Flatten(), nn.Linear(128, 5))])
    net = steppe.DML().build(lambda: next(kinds))
    losses = [float(step(images()).loss) for step in [steppe.DML().bind(net, sgd(net))] for _ in range(5)]
    assert losses[-1] < losses[0]
    kinds = iter([Staged(), nn.Sequential(nn.Flatten(), nn.Linear(128, 5))])
    with pytest.raises(steppe.InputError, match="one architecture"):
        steppe.OKDPH(same_start=False).build(lambda: next(kinds))


def test_sam_perturbs_all_networks_together_by_the_gradient_of_the_sum_of_their_losses():
    net, step = bound(steppe.On(steppe.SAM(rho=0.1), steppe.DML()), torch.float64)
    other = copy.deepcopy(net)
    batch = images(dtype=torch.float64)
    params = list(other.parameters())

    def gradient() -> list[torch.Tensor]:
        a, b = (n(batch.x) for n in other.networks)
        loss = F.cross_entropy(a, batch.y) + F.cross_entropy(b, batch.y)
        for z, t in ((a, b.detach()), (b, a.detach())):
            loss = loss + F.kl_div(F.log_softmax(z, 1), F.softmax(t, 1), reduction="batchmean")
        return list(torch.autograd.grad(loss, params))

    step(batch)
    g, start = gradient(), [p.detach().clone() for p in params]
    norm = torch.stack([t.square().sum() for t in g]).sum().sqrt()
    with torch.no_grad():
        for p, t in zip(params, g, strict=True):
            p.add_(0.1 * t / norm)
    for w, t, q in zip(start, gradient(), net.parameters(), strict=True):
        d = t + 1e-2 * w
        assert torch.allclose(q, w - 0.1 * (d + 0.9 * d), rtol=1e-9, atol=1e-10)


def test_outputs_are_each_network_their_ensemble_and_the_hybrid():
    method = steppe.OKDPH(same_start=False, deploy="hybrid")
    net, step = bound(method)
    step(images())
    net.eval()
    x = images(9).x
    with torch.no_grad():
        outputs = method.outputs(net, step.state, x)
        logits = [n(x) for n in net.networks]
    assert list(outputs) == ["deployed", "network 1", "network 2", "ensemble", "hybrid"]
    for m, z in enumerate(logits, 1):
        assert torch.equal(outputs[f"network {m}"], z)
    assert torch.allclose(outputs["ensemble"], torch.stack(logits).mean(0))
    assert torch.equal(outputs["deployed"], outputs["hybrid"])
    assert torch.equal(step.predict(x), outputs["hybrid"])


@pytest.mark.parametrize("mean", [steppe.EMA(decay=0.9), steppe.SWA(start=0)], ids=lambda m: type(m).__name__)
def test_a_mean_of_all_weights_deploys_the_first_network_of_the_mean(mean):
    method = steppe.On(mean, steppe.DML())
    net, step = bound(method)
    for k in range(4):
        step(images(k))
    x = images(9).x
    net.eval()
    with torch.no_grad():
        predicted, outputs = step.predict(x), method.outputs(net, step.state, x)
        with step.state.get_submodule("rule").swapped_in(net):
            expected = [n(x) for n in net.networks]
    assert torch.equal(predicted, expected[0])
    assert torch.equal(outputs["network 2"], expected[1])
    assert not torch.equal(predicted, net.networks[0](x))
    alone = method.deployed_model(net, step.state, maker(Staged)).eval()
    assert torch.equal(alone(x), predicted)


def test_a_method_that_builds_its_model_cannot_be_switched_on_later_and_okddip_has_two_peers():
    with pytest.raises(steppe.InputError, match="at least 3: two peers and the leader"):
        steppe.OKDDip(branches=2)
    with pytest.raises(
        steppe.InputError, match="DML builds what it trains .* leave start, stop, tail, every and spread out"
    ):
        steppe.make("dml", start=5)
    steppe.make("sam", start=5)


@pytest.mark.parametrize("rule", [steppe.SADT(), steppe.ESAM(), steppe.SADT(variant=2)], ids=repr)
@pytest.mark.parametrize("cohort", [steppe.DML(), steppe.PCL(), steppe.OKDPH()], ids=lambda m: type(m).__name__)
def test_methods_with_objectives_of_their_own_are_refused_on_several_networks(rule, cohort):
    for pair in ((rule, cohort), (cohort, rule)):
        with pytest.raises(steppe.InputError, match="cannot train the several networks of"):
            steppe.On(*pair)
    net = cohort.build(maker(Staged))
    with pytest.raises(steppe.InputError, match="cannot train several networks at once"):
        rule.bind(net, sgd(net))


def test_the_deployed_hybrid_has_running_statistics_of_its_own():
    method = steppe.OKDPH(gamma=0.0, deploy="hybrid")
    net, step = bound(method)
    reference = copy.deepcopy(net.networks[0])
    for k in range(6):
        with torch.no_grad():
            for p, *each in zip(reference.parameters(), *(n.parameters() for n in net.networks), strict=True):
                p.copy_(torch.stack(each).mean(0))
            reference(images(k).x)
        step(images(k))
    deployed = method.deployed_model(net, step.state, maker(Staged))
    for name, b in reference.named_buffers():
        assert torch.allclose(deployed.get_buffer(name), b, atol=1e-6), name


def same_every_time() -> nn.Module:
    torch.manual_seed(0)
    return Staged()


@pytest.mark.parametrize(
    ("method", "make", "count", "alike"),
    [
        (steppe.OKDPH(same_start=True), maker(Staged), 1, True),
        (steppe.DML(), same_every_time, 1, True),
        (steppe.KDCL(networks=3), same_every_time, 1, True),
        (steppe.OKDPH(same_start=True), maker(Staged), 3, False),
        (steppe.OKDPH(), maker(Staged), 1, False),
        (steppe.DML(), maker(Staged), 1, False),
    ],
)
def test_members_that_stay_one_network_are_reported_once(method, make, count, alike):
    net = method.build(make)
    step = method.bind(net, sgd(net), epoch=3)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        for k in range(7):
            step(views(count, k))
    texts = [str(m.message) for m in messages if "predict the same" in str(m.message)]
    assert len(texts) == alike
    assert all("give each a view of its own (data.views)" in text for text in texts)
    assert all(m.training for m in net.modules())


class Padded(nn.Module):
    """Tokens (B, T) of any T into one number; it records how many samples a pass without a graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 1)
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            self.sizes.append(len(x))
        z: torch.Tensor = self.head(self.embedding(x).mean(1))
        return z


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("sizes", [(1,), (4,), (4, 3)])
def test_members_are_compared_on_a_micro_batch(sizes, microbatch, count):
    """Micro-batches may be padded to several lengths, and the whole batch may be too large."""
    method = steppe.DML()
    net = method.build(maker(Padded))
    step = method.bind(net, sgd(net), loss=F.mse_loss, epoch=1, microbatch=microbatch)
    g = torch.Generator().manual_seed(0)
    parts = []
    for i, size in enumerate(sizes):
        x = torch.randint(0, 7, (size, 3 + i), generator=g)
        extra = {"view 2": x.flip(1)} if count == 2 else {}
        parts.append(steppe.Batch(x, torch.randn(size, 1, generator=g), extra=extra))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step(parts)
    expected = [min(sizes[0], microbatch or 9)] * 2 if count == 1 else []
    assert net.networks[0].sizes == expected


@pytest.mark.parametrize("fuse", ["after", "before"])
def test_a_layer_with_statistics_that_is_added_during_training_has_some_in_the_hybrid(fuse):
    method = steppe.OKDPH(fuse=fuse, every="2b")
    net = method.build(lambda: small_net(dropout=0.0))
    step = method.bind(net, optimizer := sgd(net))
    step(*small_batch())
    for student in net.networks:
        student.insert(0, layer := nn.BatchNorm2d(2))
        optimizer.add_param_group({"params": list(layer.parameters())})
    for _ in range(3):
        step(*small_batch())
    hybrid = net.hybrid()
    assert hybrid["0.running_mean"].any()
    assert not torch.equal(hybrid["0.running_var"], torch.ones(2))
    assert torch.isfinite(step.predict(small_batch()[0])).all()
