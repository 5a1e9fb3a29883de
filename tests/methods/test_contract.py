"""What holds for every method: reductions, restored weights, counted statistics, streams, resume, skips."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from support.small import BARE, adam, sgd, small_batch, small_net
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import steppe
from steppe.methods import card, parse

INF = float("inf")
REDUCTIONS: list[tuple[steppe.Method, steppe.Method]] = [
    (steppe.SAM(rho=0.0), steppe.Plain()),
    (steppe.RandomSAM(rho=0.0), steppe.Plain()),
    (steppe.AGC(clipping=INF), steppe.Plain()),
    (steppe.SADT(variant=1, weight=0.0, updates=1), steppe.Plain()),
    (steppe.SADT(variant=2, weight=0.0, updates=1), steppe.Plain()),
    (steppe.SADT(variant=3, weight=0.0, updates=1), steppe.Plain()),
    (steppe.SADT(variant=1, weight=0.0), steppe.RepeatStep()),
    (steppe.SADT(variant=2, weight=0.0), steppe.RepeatStep()),
    (steppe.SADT(variant=3, weight=0.0), steppe.RepeatStep()),
    (steppe.On(steppe.SAM(rho=0.0), steppe.GC()), steppe.GC()),
    (steppe.On(steppe.GC(), steppe.SAM()), steppe.On(steppe.SAM(), steppe.GC())),
]
every_method = pytest.mark.parametrize("name", BARE)


def trajectory(method: steppe.Method, make_optimizer: Callable[..., torch.optim.Optimizer], steps: int = 5):
    """Return everything that training leaves behind: weights, buffers, optimizer state, stream position."""
    net = small_net()
    optimizer = make_optimizer(net)
    torch.manual_seed(7)
    step = method.bind(net, optimizer)
    for k in range(steps):
        step(*small_batch(seed=k))
    tensors = [*net.state_dict().values(), torch.get_rng_state()]
    for state in optimizer.state_dict()["state"].values():
        tensors += [v for v in state.values() if isinstance(v, Tensor)]
    return tensors


@pytest.mark.parametrize("make_optimizer", [sgd, adam], ids=["sgd", "adam"])
@pytest.mark.parametrize(("method", "simpler"), REDUCTIONS, ids=lambda m: repr(m))
def test_at_its_limit_a_method_is_the_simpler_one_bit_for_bit(method, simpler, make_optimizer):
    for a, b in zip(trajectory(method, make_optimizer), trajectory(simpler, make_optimizer), strict=True):
        assert torch.equal(a, b)


def test_plain_is_the_loop_that_everybody_writes_bit_for_bit():
    net = small_net()
    optimizer = sgd(net)
    torch.manual_seed(7)
    for k in range(5):
        x, y = small_batch(seed=k)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    for a, b in zip(net.state_dict().values(), trajectory(steppe.Plain(), sgd), strict=False):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in BARE if n not in ("plain", "ema")])  # ema trains as plain does
def test_away_from_its_limits_a_method_is_not_plain(name: str):
    ours, plain = trajectory(steppe.make(name), sgd), trajectory(steppe.Plain(), sgd)
    assert not torch.equal(ours[0], plain[0])


class WithIdle(nn.Module):
    """A network with a parameter that never has a gradient, one that is frozen, and two that are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.idle = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.again = self.net[11]

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x) + self.frozen.sum()
        return z


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_step_at_learning_rate_zero_returns_every_weight_bit_for_bit_in_its_storage(name, dtype):
    net = WithIdle().to(dtype)
    before = copy.deepcopy(net.state_dict())
    storage = [p.data_ptr() for p in net.parameters()]
    # momentum and weight decay would be harmless at learning rate 0, and hide nothing
    step = steppe.make(name).bind(net, torch.optim.SGD(net.parameters(), 0.0))
    for k in range(3):
        step(*small_batch(seed=k, dtype=dtype))
    after = net.state_dict()
    for key, _ in net.named_parameters():
        assert torch.equal(before[key], after[key]), key
    assert storage == [p.data_ptr() for p in net.parameters()]


@every_method
def test_parameters_without_gradient_stay_untouched_by_weight_decay_and_noise(name):
    net = WithIdle()
    idle, frozen = net.idle.detach().clone(), net.frozen.clone()
    step = steppe.make(name).bind(net, sgd(net))
    step(*small_batch())
    assert torch.equal(net.idle, idle)
    assert torch.equal(net.frozen, frozen)


@pytest.mark.parametrize("name", [n for n in BARE if n != "lpf-sgd"])  # that one has a pass per part
def test_running_statistics_are_those_of_the_clean_pass_counted_once(name):
    ours, plain = small_net(), small_net()
    torch.manual_seed(7)
    steppe.make(name).bind(ours, sgd(ours))(*small_batch())
    torch.manual_seed(7)
    steppe.Plain().bind(plain, sgd(plain))(*small_batch())
    for (key, a), (_, b) in zip(ours.named_buffers(), plain.named_buffers(), strict=True):
        if name in ("random-sam", "r-sam") and "num_batches" not in key:
            continue  # their first pass is a perturbed one, as their cards say
        assert torch.equal(a, b), key
    assert int(ours[1].num_batches_tracked) == 1


@every_method
def test_the_global_random_stream_advances_as_in_plain_training(name):
    after = {}
    for one in (name, "plain"):
        net = small_net()
        step = steppe.make(one).bind(net, sgd(net))
        torch.manual_seed(7)
        step(*small_batch())
        step(*small_batch(seed=2))
        after[one] = torch.get_rng_state()
    assert torch.equal(after[name], after["plain"])


@pytest.mark.parametrize("name", [n for n in BARE if n not in ("esam", "looksam", "look-layersam")])  # at most
def test_counted_passes_are_those_of_the_card(name):
    net = small_net()
    step = steppe.make(name).bind(net, sgd(net))
    for k in range(3):
        step(*small_batch(seed=k))
    cost = next(line for line in card(name).splitlines() if line.startswith("Cost"))
    forward, backward, updates = map(int, re.findall(r"\d+", cost)[:3])
    method = steppe.make(name)
    other = re.search(rf"variant {getattr(method, 'variant', 0)}: (\d) forward, (\d) backward", cost)
    assert method.cost == ((int(other[1]), int(other[2]), updates) if other else (forward, backward, updates))
    if name == "sadt-v2":
        assert 2 < step.passes.per_step()[0] < 3
        assert step.passes.per_step()[2] == 2
    else:
        assert step.passes.per_step() == pytest.approx((forward, backward, updates))


@every_method
def test_micro_batches_give_the_whole_batch(name):
    """Without BatchNorm, and with the passes' own masks, the parts sum to the whole."""

    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)).double()

    x, y = small_batch(dtype=torch.float64)
    nets = [make() for _ in range(3)]
    parts = [(x[:5], y[:5]), (x[5:10], y[5:10]), (x[10:], y[10:])]
    sizes = (None, 5, None)
    steps = [steppe.make(name).bind(n, adam(n), microbatch=m) for n, m in zip(nets, sizes, strict=True)]
    for _ in range(3):
        outs = [steps[0](x, y), steps[1](x, y), steps[2](parts)]
        assert torch.allclose(outs[0].logits, outs[2].logits)
    for other in nets[1:]:
        for a, b in zip(nets[0].parameters(), other.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@every_method
def test_resume_in_the_middle_goes_on_bit_for_bit(name):
    def setup(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, steppe.Step]:
        net = small_net(seed)
        optimizer = adam(net)
        return net, optimizer, steppe.make(name).bind(net, optimizer, seed=seed)

    net, optimizer, step = setup(0)
    torch.manual_seed(7)
    for k in range(3):
        step(*small_batch(seed=k))
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), step.state_dict(), torch.get_rng_state()))
    for k in range(3, 6):
        step(*small_batch(seed=k))

    other, other_optimizer, other_step = setup(99)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_step.load_state_dict(saved[2])
    torch.set_rng_state(saved[3])
    for k in range(3, 6):
        other_step(*small_batch(seed=k))
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert other_step.passes == step.passes


class Poison(nn.Module):
    """Passes its input on; gives NaN from the given call on."""

    def __init__(self, at_call: int):
        super().__init__()
        self.at_call, self.calls = at_call, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        return x * float("nan") if self.calls == self.at_call else x


@every_method
def test_a_nan_in_the_first_pass_skips_the_step_and_leaves_everything(name):
    net = small_net().append(Poison(1))
    before = copy.deepcopy([p.detach() for p in net.parameters()])
    optimizer = adam(net)
    step = steppe.make(name).bind(net, optimizer)
    out = step(*small_batch())
    assert out.skipped
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not step(*small_batch()).skipped


@pytest.mark.parametrize("name", ["two-step", "sam", "sadt-v1", "sadt-v2", "sadt-v3"])
@pytest.mark.parametrize("make_optimizer", [sgd, adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("good", [0, 2], ids=["at the first step", "later"])
def test_a_nan_in_the_second_pass_returns_weights_buffers_and_optimizer(name, make_optimizer, good):
    net = small_net().append(Poison(2 * good + 2))
    optimizer = make_optimizer(net)
    step = steppe.make(name, **({"updates": 2} if "sadt" in name else {})).bind(net, optimizer)
    if name == "sadt-v2":
        net[-1].at_call = 3 * good + 2
    for k in range(good):
        assert not step(*small_batch(seed=k)).skipped
    before, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert step(*small_batch()).skipped
    for key, value in net.state_dict().items():
        assert torch.equal(before[key], value), key
    after = optimizer.state_dict()
    assert moments["param_groups"] == after["param_groups"]
    assert list(moments["state"]) == list(after["state"])
    for index, state in moments["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][index][key])), (index, key)
    assert not step(*small_batch()).skipped


def test_an_exception_in_a_pass_leaves_clean_weights_and_buffers():
    net = small_net()
    calls = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("from the user's loss")
        return nn.functional.cross_entropy(z, y)

    before = [p.detach().clone() for p in net.parameters()]
    step = steppe.SAM(rho=0.5).bind(net, sgd(net), loss=loss)
    with pytest.raises(KeyError):
        step(*small_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert int(net[1].num_batches_tracked) == 0  # as if the step had not begun


def test_the_second_pass_of_sam_sees_the_first_pass_masks():
    """At an infinitesimal rho the two passes agree only if their dropout masks do."""
    seen = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.append(z.detach())
        return nn.functional.cross_entropy(z, y)

    net = small_net(dropout=0.5)
    steppe.SAM(rho=1e-7).bind(net, sgd(net), loss=loss)(*small_batch())
    assert torch.allclose(seen[0], seen[1], atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_sadt_v2_shares_its_trunk_and_gives_the_gradient_of_whole_passes(dropout: float):
    """The shared form against the naive one, in float64, with BatchNorm and the same dropout masks."""

    class Whole(nn.Module):  # not a Sequential: every teacher takes a whole pass
        def __init__(self, net: nn.Sequential):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(x)
            return z

    shared, naive = small_net(0, torch.float64, dropout), Whole(small_net(0, torch.float64, dropout))
    # large noise, so that the two teachers differ from each other and from the network
    steps = [
        steppe.SADT(variant=2, sigma=0.3).bind(n, torch.optim.SGD(n.parameters(), 0.1)) for n in (shared, naive)
    ]
    for k in range(3):
        for step in steps:
            torch.manual_seed(k)
            step(*small_batch(seed=k, dtype=torch.float64))
    for a, b in zip(shared.state_dict().values(), naive.net.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert steps[0].passes.backward < 0.9 * steps[1].passes.backward
    assert steps[1].passes.per_step() == (3, 3, 2)


def test_sadt_v2_counts_the_work_that_it_does():
    """The counted passes are the multiply-adds of the step in units of a plain one's."""
    flops = {}
    for name in ("plain", "sadt-v2"):
        net = small_net()
        step = steppe.make(name).bind(net, sgd(net))
        step(*small_batch())
        with FlopCounterMode(display=False) as counter:
            step(*small_batch())
        flops[name] = counter.get_total_flops()
        passes = step.passes.backward / step.passes.steps
    assert flops["sadt-v2"] / flops["plain"] == pytest.approx(passes, rel=0.05)


def test_only_named_pairs_combine():
    assert parse("sam+gc") == steppe.On(steppe.SAM(), steppe.GC())
    with pytest.raises(steppe.InputError, match="both define the step"):
        parse("sam+sadt-v1")
