"""The family of averages: running means without bias, windows, moments, choice, statistics, host memory."""

import copy
from itertools import chain, permutations

import pytest
import torch
from support.small import bound, indexed, same, small_net
from torch import Tensor, nn

import steppe


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def deployed(step: steppe.Step, net: nn.Module) -> Tensor:
    with step.deployed_weights():
        return weights(net)


@pytest.mark.parametrize("device", ["model", "cpu"])
def test_each_average_is_the_formula_of_its_paper(device):
    method = steppe.Averages(decays="0.5 0.9", k=3, every=2, start=4, device=device)
    net, step = bound(method, small_net(dtype=torch.float64, dropout=0.0))
    path = [weights(net)]
    for t in range(1, 12):
        step(steppe.Batch(indexed(t).x.double(), indexed(t).y))
        path.append(weights(net))

    def ema(d: float) -> Tensor:
        terms = [(1 - d) * d ** (11 - i) * path[i] for i in range(1, 12)]
        return torch.stack(terms).sum(0) / (1 - d**11)

    # periods of two steps end after steps 2, 4, ...; SWA begins with the step number 4, counted from 0
    expected = {
        "ema 0.5": ema(0.5),
        "ema 0.9": ema(0.9),
        "swa": (path[6] + path[8] + path[10]) / 3,
        "lawa 3": (path[6] + path[8] + path[10]) / 3,
        "weights": path[11],
    }
    assert method.names == list(expected)
    for name, mean in expected.items():
        assert method.choose(step.state, {"weights": -1, name: 2, "of another": 3}) == name
        assert torch.allclose(deployed(step, net), mean, rtol=1e-10), name
    assert torch.equal(weights(net), path[11])


@pytest.mark.parametrize("spec", ["ema:decay=0.999", "averages:decays=0.999,k=3,every=1,start=0"])
def test_the_mean_of_weights_in_half_precision_moves_by_less_than_their_digits(spec):
    net = nn.Linear(4, 3).bfloat16()
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.0))
    x, y = torch.randn(6, 4, dtype=torch.bfloat16), torch.arange(6) % 3
    for k in range(300):
        if k == 200:
            before = weights(net).float()
            average = step.state if spec.startswith("ema") else step.state[0]
            start = torch.cat([average.get_buffer(str(i)).flatten() for i in range(2)]).clone()
            with torch.no_grad():
                for p in net.parameters():
                    p += 1
        step(x, y)
    mean = torch.cat([average.get_buffer(str(i)).flatten() for i in range(2)])
    assert torch.allclose(start, before, atol=1e-6)
    if spec.startswith("ema"):
        decays = [min(0.999, (1 + t) / (10 + t)) for t in range(200, 300)]
        rest = torch.tensor(decays).double().prod()
    else:
        rest = torch.tensor((1 - 0.999**200) / (1 - 0.999**300) * 0.999**100)
    assert torch.allclose(mean - start, (1 - rest.float()) * (weights(net).float() - before), atol=1e-3)
    assert torch.equal(deployed(step, net), mean.bfloat16())
    if not spec.startswith("ema"):
        with step.method._at(net, step.state, 2):  # the mean of equal networks
            assert torch.equal(weights(net), (before.bfloat16() + 1))


def test_ema_deploys_the_weights_until_there_is_a_mean():
    net, step = bound(steppe.EMA(), small_net(dropout=0.0))
    with torch.no_grad():
        net[0].weight += 1
    assert torch.equal(deployed(step, net), weights(net))


def test_lawa_is_the_mean_of_the_last_networks_and_is_saved_with_them():
    net, step = bound(steppe.LAWA(k=2, every=3), small_net(dropout=0.0))
    path = []
    for t in range(8):
        assert torch.equal(deployed(step, net), weights(net)) == (t < 4)  # the first mean is of one network
        step(indexed(t))
        path.append(weights(net))
    assert torch.allclose(deployed(step, net), (path[2] + path[5]) / 2, atol=1e-6)
    other, again = bound(steppe.LAWA(k=2, every=3), small_net(seed=5, dropout=0.0))
    other.load_state_dict(net.state_dict())
    again.load_state_dict(step.state_dict())
    again.runtime.optimizer.load_state_dict(copy.deepcopy(step.runtime.optimizer.state_dict()))
    for one in (step, again):
        one(indexed(8))
    assert torch.equal(deployed(step, net), deployed(again, other))
    assert torch.allclose(deployed(step, net), (path[5] + weights(net)) / 2, atol=1e-6)


def test_moments_at_the_end_of_epochs_are_periods_of_their_steps():
    nets = []
    for every, options in ((4, {}), ("1e", {"epoch": 4})):
        net, step = bound(steppe.SWA(start=0, every=every), small_net(dropout=0.0), **options)
        for t in range(10):
            step(indexed(t))
        with step.deployed_weights():
            nets.append(small_net())
            nets[-1].load_state_dict(net.state_dict())
    assert same(*nets)
    for method in (steppe.SWA(every="1e"), steppe.Averages(every="1e"), steppe.LAWA(every="1e")):
        with pytest.raises(steppe.InputError, match="the length of an epoch is unknown"):
            bound(method, small_net(), steps=100)[1](indexed(0))  # in the first step, before SWA's start
    for every in ("5b", 0, "e"):
        with pytest.raises(steppe.InputError, match="every is .*; give at least 1 step, or the end of epochs"):
            steppe.SWA(every=every)


def test_lawa_s_running_statistics_are_those_of_its_mean():
    """The network stands still for most of a period, so that they end at the batch's at the period's mean."""
    net, step = bound(steppe.LAWA(k=2, every=100), small_net(dropout=0.0))
    for t in range(300):
        for group in step.runtime.optimizer.param_groups:
            group["lr"] = 0.1 if t < 210 else 0.0
        step(indexed(t if t < 210 else 0))
    with step.deployed_weights():
        mean = copy.deepcopy(net.state_dict())
    reference = small_net(dropout=0.0)
    reference.load_state_dict(mean)
    reference[1].momentum = 1.0
    reference(indexed(0).x)
    assert torch.allclose(mean["1.running_mean"], reference[1].running_mean, atol=1e-3)
    assert torch.allclose(mean["1.running_var"], reference[1].running_var, rtol=1e-2)
    assert not torch.allclose(net[1].running_var, reference[1].running_var, rtol=1e-2)


def test_the_choice_is_saved_and_every_output_is_named():
    net, step = bound(steppe.parse("sam+averages:decays=0.9 0.99,k=0,swa=false"), small_net(dropout=0.0))
    for t in range(3):
        step(indexed(t))
    base = step.state["base"]
    outputs = step.method.outputs(net.eval(), step.state, indexed(0).x)
    assert list(outputs) == ["deployed", "ema 0.9", "ema 0.99", "weights"]
    assert torch.equal(outputs["deployed"], outputs["ema 0.9"]) and base.chosen == 0
    assert step.method.choose(step.state, {"ema 0.9": (0.5, -1), "ema 0.99": (0.7, -2), "weights": (0.7, -3)})
    nan = float("nan")
    for ranks in ({"ema 0.9": nan, "ema 0.99": 0.1}, {"ema 0.9": (nan, nan), "ema 0.99": (0.1, nan)}):
        assert step.method.choose(step.state, ranks) == "ema 0.99"
    saved = step.state_dict()
    _, again = bound(steppe.parse("sam+averages:decays=0.9 0.99,k=0,swa=false"), small_net(dropout=0.0))
    again.load_state_dict(saved)
    assert again.state["base"].chosen == 1
    assert torch.equal(step.predict(indexed(0).x), outputs["ema 0.99"])
    assert steppe.EMA().choose(step.state, {"deployed": 1}) is None


class Masked(nn.Module):
    """Adds a causal mask, of which half is -inf, to the logits before a softmax; a sparse graph of the samples."""

    def __init__(self, sparse: str = "") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("mask", torch.triu(torch.full((5, 5), float("-inf")), 1))
        graph = torch.eye(12).to_sparse_csr() if sparse == "csr" else torch.eye(12).to_sparse()
        self.register_buffer("graph", graph if sparse else None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        attention = torch.softmax(h[:, :, None] * h[:, None] + self.mask, -1)
        z: Tensor = self.last((attention @ h[:, :, None])[..., 0])
        return z if self.graph is None else self.graph @ z


def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(12, 4), torch.arange(12) % 3


@pytest.mark.parametrize("spec", ["lookahead:every=2", "okdph:gamma=0.5,every=1b", "ema", "mesa"])
def test_an_infinite_mask_stays_what_it_is(spec):
    method = steppe.parse(spec)
    net = method.build(Masked)
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), steps=8)
    for _ in range(5):
        assert torch.isfinite(step(*rows()).loss)
    with step.deployed_weights():
        masks = [b for name, b in net.named_buffers() if name.endswith("mask")]
        assert masks and all(torch.equal(mask, Masked().mask) for mask in masks)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("sparse", ["coo", "csr"])
@pytest.mark.parametrize(
    "spec", ["ema", "averages:start=0", "lookahead:every=2", "mesa", "okdph:gamma=0.5,every=1b"]
)
def test_a_sparse_buffer_changes_nothing(spec, sparse):
    deployed = []
    for kind in ("", sparse):  # the graph is the identity
        method = steppe.parse(spec)
        torch.manual_seed(0)
        net = method.build(lambda kind=kind: Masked(kind))
        step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), steps=8)
        for _ in range(5):
            step(*rows())
        deployed.append(step.predict(rows()[0]))
    assert torch.allclose(*deployed, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:2 trainable parameters of the model are in no group")
def test_lookahead_averages_what_the_optimizer_trains_alone():
    """A layer frozen within a period stays, and one that another optimizer moves is neither set nor remembered."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    other, trained = net[1], [*net[0].parameters(), *net[2].parameters()]
    step = steppe.Lookahead(alpha=0.5, every=4).bind(net, torch.optim.SGD(trained, 0.1))
    start = net[2].weight.detach().clone()
    for t in range(4):
        if t == 2:
            net[0].requires_grad_(False)
            frozen = net[0].weight.clone()
        with torch.no_grad():
            other.weight += 1
        moved = other.weight.detach().clone()
        step(*rows())
    assert torch.equal(net[0].weight, frozen) and torch.equal(other.weight, moved)
    assert not torch.equal(net[2].weight, start)
    net[0].requires_grad_(True)  # its average is where it was left
    for group in step.runtime.optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(4):
        step(*rows())
    assert torch.equal(net[0].weight, frozen) and torch.equal(other.weight, moved)


def test_alpha_of_lookahead_may_be_that_of_a_parameter_group():
    """With every = 1 a step is alpha times the optimizer's: a rate of its own for each group."""
    nets = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    groups = [{"params": list(m.parameters())} for m in nets[0]]
    groups[1]["alpha"] = 0.25
    step = steppe.Lookahead(alpha=0.5, every=1).bind(nets[0], torch.optim.SGD(groups, 0.1))
    groups = [{"params": list(m.parameters()), "lr": lr} for m, lr in zip(nets[1], (0.05, 0.025), strict=True)]
    plain = steppe.Plain().bind(nets[1], torch.optim.SGD(groups, 0.1))
    x, y = rows()
    for _ in range(3):
        step(x.double(), y)
        plain(x.double(), y)
    assert all(
        torch.allclose(p, q, rtol=1e-12) for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )


MOVED = [  # the mean of the last network alone is the network
    ("lookahead:every=2", "lawa:k=1,every=2"),
    ("okdph:every=1b", "lawa:k=1,every=2"),
    ("okdph:every=1b,same_start=true", "swa:start=0,every=2"),
    ("sam", "lookahead:every=2", "lawa:k=1,every=2"),
    ("okdph:every=1b", "lookahead:every=2", "ema:decay=0"),
]


@pytest.mark.parametrize("spec", ["+".join(p) for p in chain(*map(permutations, MOVED))])
def test_a_mean_is_of_the_weights_after_all_that_moves_them_in_a_step(spec):
    method, last = steppe.parse(spec), torch.zeros(0)
    torch.manual_seed(0)
    net = method.build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.5), steps=10)
    for _ in range(2):
        last = weights(net)
        step(*rows())
    assert not torch.equal(weights(net), last)
    assert torch.equal(deployed(step, net), weights(net))


def test_students_are_fused_before_a_slow_average_however_it_is_written():
    nets = []
    for spec in ("okdph:every=1b+lookahead:every=2", "lookahead:every=2+okdph:every=1b"):
        torch.manual_seed(0)
        method = steppe.parse(spec)
        net = method.build(lambda: nn.Linear(4, 3))
        step = method.bind(net, torch.optim.SGD(net.parameters(), 0.5))
        for _ in range(4):
            step(*rows())
        nets.append(net)
    assert same(*nets)
