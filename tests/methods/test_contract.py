"""The contract of methods: hyper-parameters and what follows from them, presets, identity, plain path, state."""

import ast
import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from support.cohorts import Staged, maker, views
from support.small import bound, close, indexed, same, sgd, small_batch, small_net, trained
from torch import Tensor, nn

import steppe
from steppe.core.method import Cost, Method, ParamState, hyper
from steppe.core.method.hyperparameters import constraint_of, plain_fields
from steppe.core.method.registry import METHODS
from steppe.core.schedules import Linear, Schedule, format_schedule

EVERY = sorted(METHODS)


def test_another_preset_or_variant_has_its_own_values_and_cost():
    edited = replace(steppe.OKDPH(), preset="cifar10-vgg16")
    assert (edited.resolved.omega, edited.resolved.beta, edited.resolved.gamma) == (0.3, 0.3, 1.0)
    assert edited == steppe.OKDPH(preset="cifar10-vgg16")
    assert edited.resolved.same_start and not edited.moves and replace(edited, same_start=False).moves
    assert replace(steppe.OKDPH(networks=2), networks=3).cost == (4, 4, 1)
    second = replace(steppe.SADT(variant=1), variant=2)
    assert (second.resolved.scope, second.cost) == ("last-conv last-dense", (3, 3, 2))
    assert replace(second, preset="notebook").resolved.sigma == 0.1
    assert replace(steppe.SADT(sigma=0.5), variant=3, preset="notebook").resolved.sigma == 0.5
    assert replace(steppe.SAM(), ascents=4).cost == (5, 5, 1)
    assert replace(steppe.RWP(), halves=True).local and not replace(steppe.RWP(halves=True), halves=False).local


def test_a_combination_has_the_properties_of_its_parts():
    on = steppe.On(steppe.SAM(), steppe.OKDPH())
    assert on.moves == steppe.OKDPH().moves and not replace(on, base=steppe.DML()).moves
    window = steppe.ActiveWindow(steppe.ESAM(), every=2)
    assert (window.local, window.controls) == (steppe.ESAM().local, steppe.ESAM().controls)
    assert not replace(window, method=steppe.SAM()).local


SPELLED_OUT = [
    (steppe.SADT(variant=1), steppe.SADT(sigma=1e-4, scope="all", direction="pre-aux")),
    (steppe.SADT(variant=2, preset="notebook"), steppe.SADT(2, 0.1, "paper", "last-bias* tensor:7", "aux-pre")),
    (steppe.OKDPH(), steppe.OKDPH(omega=0.8, beta=0.8, gamma=0.5, every="5b", same_start=False)),
    (
        steppe.OKDPH(preset="cifar10-vgg16"),
        steppe.OKDPH(omega=0.3, beta=0.3, gamma=1, every="1e", same_start=True),
    ),
    (steppe.SAM(rho=1), steppe.SAM(rho=1.0)),
    (steppe.parse("sam:rho=linear(0,1)+gc"), steppe.parse("sam:rho=linear(0.0,1.0)+gc")),
]


@pytest.mark.parametrize(("method", "spelled_out"), SPELLED_OUT, ids=str)
def test_what_trains_alike_has_the_same_data(method, spelled_out):
    assert method.to_dict() == spelled_out.to_dict()
    assert str(method) == str(spelled_out)


def test_the_data_of_a_method_is_json_and_differs_with_every_setting():
    texts = set()
    methods = [*map(steppe.make, EVERY), steppe.AGC(clipping=math.inf), steppe.SAM(rho=lambda t: 0.1 * t)]
    methods += [steppe.parse(s) for s in ("sam+gc", "sam:start=2,stop=0.5", "sam:rho=linear(0,0.1)")]
    methods += [steppe.SAM(rho=Linear(0, x)) for x in (0.123456781, 0.123456782)]
    for method in methods:
        text = json.dumps(method.to_dict(), allow_nan=False)
        assert json.loads(text) == method.to_dict()
        assert " at 0x" not in text
        texts.add(text)
    assert len(texts) == len(methods)
    assert steppe.parse("sam+gc").to_dict()["base"] == {"class": "GC", "conv_only": False}


class Halving(Schedule):
    def at(self, now: object) -> float:
        return 0.5


def test_a_schedule_s_text_is_exact_and_a_users_own_has_one():
    assert format_schedule(Linear(0, 1 / 3)) == f"linear(0,{1 / 3!r})"
    assert "Halving" in steppe.SAM(rho=Halving()).to_dict()["rho"]


def test_every_hyper_parameter_says_what_it_is():
    for name in EVERY:
        for f in dataclasses.fields(steppe.make(name)):
            assert constraint_of(f).help, (name, f.name)


def test_no_method_writes_into_itself():
    source = Path(steppe.__file__).parent
    for path in [*(source / "methods").rglob("*.py"), source / "core" / "composition.py"]:
        writes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert not [n for n in writes if n.attr == "__setattr__"], path


@dataclass(frozen=True)
class Free(Method):
    share: float = hyper(0.5, "a share", minimum=0, maximum=1)
    size: float | None = hyper(None, "a size", above=0)
    parts: int = hyper(2, "parts", minimum=1)
    kind: str = hyper("a", "a kind", choices=("a", "b", "c"))
    when: float = hyper(0.5, "when", amount=True)
    rho: float | Schedule = hyper(0.1, "a radius", above=0)
    most: float = hyper(1.0, "at most 5", maximum=5)
    few: int = hyper(1, "below 5", below=5)
    even: int = hyper(2, "even", valid=lambda n: n % 2 == 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 2}, r"Free: share is 2; give a number from 0 to 1 \(0.5 is usual\)"),
        ({"size": 0.0}, "Free: size is 0.0; give a number above 0, or leave it out"),
        ({"parts": 0}, r"Free: parts is 0; give at least 1 \(2 is usual\)"),
        ({"parts": 1.5}, r"Free: parts is 1.5; give a whole number \(its default is 2\)"),
        ({"kind": "d"}, "Free: kind is 'd'; give 'a', 'b' or 'c'"),
        ({"when": -1}, "Free: when is -1; give a step number, or a share of the training below 1"),
        ({"rho": Linear(0, 1)}, r"Free: rho is Linear\(.*\); give a number above 0 \(0.1 is usual\)"),
        ({"most": 6}, r"Free: most is 6; give a number of at most 5 \(1 is usual\)"),
        ({"few": 5}, r"Free: few is 5; give below 5 \(1 is usual\)"),
        ({"even": 3}, r"Free: even is 3; give another value \(2 is usual\)"),
        ({"share": math.nan}, "Free: share is nan; give a finite number"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(settings, message):
    with pytest.raises(steppe.InputError, match=message):
        Free(**settings)
    assert Free(size=2).amounts == ("when",)
    with pytest.raises(TypeError):
        hyper(0.0, "misspelt", minimun=0)


def limits() -> list[tuple[str, dict[str, object]]]:
    return [(name, limit) for name in EVERY for limit in steppe.make(name).limits]


@pytest.mark.parametrize(("name", "limit"), limits(), ids=str)
def test_at_each_of_its_limits_a_method_is_plain_bit_for_bit_with_plain_s_passes(name, limit):
    method = steppe.make(name, **limit)
    torch.manual_seed(0)
    net = method.build(small_net)
    step = method.bind(net, sgd(net), steps=10)
    torch.manual_seed(7)
    for k in range(3):
        step(indexed(k))
    assert same(net, trained(steppe.Plain(), small_net(), 3))
    assert step.passes.per_step() == (1, 1, 1)


def test_the_limits_are_those_of_the_cards():
    assert len(limits()) > 25
    assert steppe.SAM().limit == {"rho": 0, "decay": 0}
    assert steppe.MixedSAM().limits == [{"alpha": 1}, {"rho": 0}]
    assert steppe.ESAM().limit == {"rho": 0, "gamma": 1}
    assert plain_fields(steppe.RWP) == ({"alpha": 1, "gamma": 0}, {"batches": 1, "halves": False})
    assert steppe.GC().limit is None and steppe.EMA().limit == {}


def test_a_step_is_plain_exactly_when_the_radius_of_all_groups_is_zero_now():
    method = steppe.SAM(rho=Linear(0.0, 1.0, over=2))
    _, step = bound(method)
    counts = []
    for k in range(3):
        step(*small_batch(k))
        counts.append(step.passes.forward)
    assert counts == [1, 3, 5]
    for radii, forward in (((0.0, 0.0), 1), ((0.0, 0.1), 2), ((None, 0.0), 2)):
        net = small_net()
        first, *others = net.parameters()
        groups = [{"params": [first], "rho": radii[0]}, {"params": others, "rho": radii[1]}]
        step = steppe.SAM().bind(net, torch.optim.SGD(groups, 0.1))
        step(*small_batch())
        assert step.passes.forward == forward, radii
    assert not same(trained(steppe.SAM(rho=0, decay=0.1)), trained(steppe.Plain()))


def test_a_users_method_is_plain_at_its_limit_without_a_line_for_it():
    @dataclass(frozen=True)
    class Wild(Method):
        strength: float = hyper(1.0, "how wild", minimum=0, plain_at=0)

        def step(self, batch, state, rt):
            raise AssertionError

        def objective(self, batch, state, rt):
            raise AssertionError

    assert same(trained(Wild(strength=0)), trained(steppe.Plain()))
    assert same(trained(steppe.On(Wild(strength=0), steppe.EMA())), trained(steppe.EMA()))
    with pytest.raises(AssertionError):
        trained(Wild())


class Visits(nn.Module):
    """How many steps there were."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))


@dataclass(frozen=True)
class Counting(Method[Visits]):
    def after(self, batch, out, state: Visits, rt) -> None:
        state.count += 1


def test_a_method_twice_in_a_combination_has_a_state_for_each():
    e = Counting()
    _, step = bound(steppe.On(e, steppe.On(e, e)))
    for k in range(3):
        step(*small_batch(k))
    counts = [int(t) for name, t in step.state.state_dict().items() if name.endswith("count")]
    assert counts == [3, 3, 3]
    with pytest.raises(steppe.InputError, match="EMA and EMA both define the deployed weights"):
        steppe.On(ema := steppe.EMA(), ema)


class Speed(ParamState):
    v = ParamState.Vector()


@dataclass(frozen=True)
class HeavyBall(Method[Speed]):
    """SGD's momentum, kept by the method: v <- mu v + g, w <- w - eta v."""

    mu: float = hyper(0.9, "decay", minimum=0, below=1, plain_at=0)
    cost = Cost(1, 1, 1)

    def step(self, batch, state: Speed, rt):
        out, g = rt.grad(batch)
        state.v = [self.mu * v + t for v, t in zip(state.v, g, strict=True)]
        rt.apply([v.clone() for v in state.v])
        return out


def test_a_state_is_made_from_its_class_and_follows_the_optimizers_parameters():
    ours, theirs = small_net(dropout=0.0), small_net(dropout=0.0)
    step = HeavyBall().bind(ours, torch.optim.SGD(reversed(list(ours.parameters())), 0.1))
    other = steppe.Plain().bind(theirs, torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9))
    for k in range(4):
        step(*small_batch(k))
        other(*small_batch(k))
    assert close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert HeavyBall.state_type is Speed and steppe.SAM.state_type is nn.Module
    again = HeavyBall().bind(net := small_net(), sgd(net))
    again.load_state_dict(step.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state.buffers(), step.state.buffers(), strict=True))


def test_okdph_begins_anew_when_the_same_networks_are_bound_again():
    """What a step keeps for its fusion is in the step's state, not in the networks."""
    method = steppe.OKDPH(fuse="before", every="9b", gamma=0.5)
    net, fresh = method.build(maker(Staged)), method.build(maker(Staged))
    method.bind(net, sgd(net))(views(3))
    fresh.load_state_dict(net.state_dict())
    for one in (net, fresh):
        method.bind(one, sgd(one))(views(3, seed=1))
    assert same(net, fresh)


def momentum(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> list[Tensor | None]:
    step = steppe.Plain().bind(net, optimizer)
    for k in range(steps):
        step(*small_batch(k))
    return step.runtime.momentum()


def test_the_momentum_is_the_optimizers_own():
    net = small_net()
    assert momentum(net, sgd(net), 0) == [None] * len(list(net.parameters()))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    assert all(
        a is optimizer.state[p]["momentum_buffer"]
        for a, p in zip(momentum(net, optimizer), net.parameters(), strict=True)
    )
    adam = torch.optim.AdamW(net.parameters())
    assert all(a is adam.state[p]["exp_avg"] for a, p in zip(momentum(net, adam), net.parameters(), strict=True))
    with pytest.raises(steppe.InputError, match="SGD keeps no momentum; give it some, as in SGD"):
        momentum(net, torch.optim.SGD(net.parameters(), 0.1))


def test_msam_is_plain_in_its_first_step_and_perturbs_by_rho_downhill_afterwards():
    net, weights = small_net(dropout=0.0), []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        return nn.functional.cross_entropy(z, y)

    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    step = steppe.MSAM(rho=0.7).bind(net, optimizer, loss=loss)
    step(*small_batch())
    v = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in net.parameters()])
    w = torch.cat([p.detach().flatten() for p in net.parameters()])
    step(*small_batch())
    assert torch.allclose(weights[-1], w - 0.7 * v / v.norm(), atol=1e-6)
    assert step.passes.per_step() == (1, 1, 1)
    assert int(net[1].num_batches_tracked) == 2
