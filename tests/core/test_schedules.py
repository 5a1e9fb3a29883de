"""Schedules, windows, and hyper-parameters of parameter groups."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.small import same, sgd, small_net, trained
from torch import nn

import steppe
from steppe.core import schedules
from steppe.core.schedules import Cosine, FunctionSchedule, Linear, Power, TrainingProgress, WithLR


@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(1, 1000), st.integers(0, 2000))
def test_linear_and_cosine_start_and_end_where_they_say_and_stay_between(start, end, over, t):
    for schedule in (Linear(start, end, over), Cosine(start, end, over)):
        assert schedule.at(TrainingProgress(0, None, 0.1)) == pytest.approx(start)
        assert schedule.at(TrainingProgress(over, None, 0.1)) == end
        assert min(start, end) - 1e-9 <= schedule.at(TrainingProgress(t, None, 0.1)) <= max(start, end) + 1e-9


def test_values_in_the_middle():
    assert Linear(0, 0.2, 10).at(TrainingProgress(5, None, 0.1)) == pytest.approx(0.1)
    assert Linear(0, 0.2, 0.5).at(TrainingProgress(5, 0.25, 0.1)) == pytest.approx(0.1)
    assert Linear(0, 0.2).at(TrainingProgress(5, 0.25, 0.1)) == pytest.approx(0.05)
    assert Cosine(1, 0, 4).at(TrainingProgress(1, None, 0.1)) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert Power(1, 0.2, 3).at(TrainingProgress(5, 0.5, 0.1)) == pytest.approx(1 - 0.8 / 8)
    assert Power(1, 0.2, 0.5, 16).at(TrainingProgress(4, None, 0.1)) == pytest.approx(0.6)
    assert Power(1, 0.2, 3, 4).at(TrainingProgress(4, None, 0.1)) == 0.2
    assert WithLR(0.2, 0.1, low=0.1, lr_min=0.02).at(TrainingProgress(0, None, 0.06)) == pytest.approx(0.15)
    assert WithLR(0.05, 0.1).at(TrainingProgress(0, None, 0.025)) == pytest.approx(0.0125)
    assert FunctionSchedule(lambda t: t * t).at(TrainingProgress(3, None, 0.1)) == 9


def radii(method: steppe.Method, steps: int = 6, total: int | None = None, lr: float = 0.1) -> list[float]:
    """Return how far from its weights each step's second pass was, 0 where there was none."""
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr)
    weights: list[list[torch.Tensor]] = []

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(z, y)

    step = method.bind(net, optimizer, loss=loss, steps=total)
    distances = []
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr / (t + 1)
        weights.clear()
        step(torch.randn(4, 3, generator=torch.Generator().manual_seed(t)), torch.tensor([0, 1, 0, 1]))
        moved = [(a - b).square().sum() for a, b in zip(weights[0], weights[-1], strict=True)]
        distances.append(round(float(torch.stack(moved).sum().sqrt()), 5))
    return distances


def test_a_tail_and_its_ramp():
    sam = steppe.SAM(rho=0.1)
    assert radii(steppe.ActiveWindow(sam, tail=0.4), 10, 10) == [0] * 6 + [0.1] * 4
    assert radii(steppe.make("sam", rho=0.1, tail=0.1), 10, 10) == [0] * 9 + [0.1]
    assert radii(steppe.ActiveWindow(sam, spread=0.3), 10, 10) == [0, 0, 0, 0.1, 0, 0, 0.1, 0, 0, 0.1]
    ramp = steppe.SAM(rho=steppe.Ramp(0.0, 0.4))
    assert radii(steppe.ActiveWindow(ramp, tail=0.4), 10, 10) == [0] * 6 + [0, 0.1, 0.2, 0.3]
    assert radii(steppe.ActiveWindow(ramp, start=2, stop=6), 8) == [0, 0, 0, 0.1, 0.2, 0.3, 0, 0]
    assert radii(steppe.ActiveWindow(ramp, start=2), 10, 10) == [0, 0, 0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    assert radii(ramp, 4, 4) == [0, 0.1, 0.2, 0.3]
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    step = steppe.make("sam", tail="decay").bind(net, optimizer, steps=10, decay_start=0.8)
    for _ in range(10):
        step(torch.ones(2, 3), torch.tensor([0, 1]))
    assert step.passes.backward == 12
    for options, message in (({"steps": 10}, "no decay phase of its own"), ({}, "no decay phase of its own")):
        with pytest.raises(steppe.InputError, match=message):
            steppe.make("sam", tail="decay").bind(net, optimizer, **options)
    with pytest.raises(steppe.InputError, match="tail is 0.3, a share of the training, and its length is unknown"):
        steppe.make("sam", tail=0.3).bind(net, optimizer)
    for ramped in (ramp, steppe.ActiveWindow(ramp, start=3), steppe.make("le-sam", sigma=ramp.rho, start=3)):
        with pytest.raises(steppe.InputError, match="its length is unknown"):
            ramped.bind(net, optimizer)
    for name, settings in (("EMA", {"tail": 0.3}), ("Plain", {"every": 2})):
        with pytest.raises(steppe.InputError, match=f"{name} makes plain steps, so that a window has no effect"):
            steppe.make(name.lower(), **settings)
    for settings in ({"tail": 1.5}, {"tail": "end"}, {"tail": 0.3, "start": 2}, {"spread": 0.5, "every": 2}):
        with pytest.raises(steppe.InputError, match="tail is|spread is"):
            steppe.make("sam", **settings)
    assert str(steppe.make("sam", start=3)) == str(steppe.ActiveWindow(steppe.SAM(), start=3))
    assert "tail" not in steppe.make("sam", start=3).to_dict()


def test_rho_follows_a_schedule():
    assert radii(steppe.SAM(rho=Linear(0.0, 0.4, 4))) == [0, 0.1, 0.2, 0.3, 0.4, 0.4]
    assert radii(steppe.SAM(rho=Linear(0.4, 0.0, 0.5)), total=8) == [0.4, 0.3, 0.2, 0.1, 0, 0]
    assert radii(steppe.SAM(rho=WithLR(0.6, lr_max=0.1))) == [0.6, 0.3, 0.2, 0.15, 0.12, 0.1]
    assert radii(steppe.SAM(rho=lambda t: 0.1 * (t % 2))) == [0, 0.1, 0, 0.1, 0, 0.1]


def test_windows_limit_the_steps_of_a_method_combine_and_are_read_from_text():
    assert radii(steppe.ActiveWindow(steppe.SAM(rho=0.1), start=2, stop=4)) == [0, 0, 0.1, 0.1, 0, 0]
    assert radii(steppe.ActiveWindow(steppe.SAM(rho=0.1), start=1, every=3)) == [0, 0.1, 0, 0, 0.1, 0]
    assert radii(steppe.ActiveWindow(steppe.SAM(rho=0.1), start=0.5), total=6) == [0, 0, 0, 0.1, 0.1, 0.1]
    assert radii(steppe.ActiveWindow(steppe.SAM(rho=0.1), stop=0.5), total=6) == [0.1, 0.1, 0.1, 0, 0, 0]
    method = steppe.methods.parse("sam:rho=linear(0,0.1,0.5),start=2,every=5+gc:stop=0.25")
    assert method == steppe.On(
        steppe.ActiveWindow(steppe.SAM(rho=Linear(0, 0.1, 0.5)), start=2, every=5),
        steppe.ActiveWindow(steppe.GC(), stop=0.25),
    )
    assert steppe.methods.parse("sam:rho=with-lr(0.1,0.05)").rho == WithLR(0.1, 0.05)
    with pytest.raises(steppe.InputError, match="both define the step"):
        steppe.methods.parse("sam:start=3+sadt-v1:stop=3")


@pytest.mark.parametrize("spec", ["sam", "saf:past=1", "agc", "sadt-v2"])
def test_outside_its_window_a_method_is_plain_bit_for_bit(spec):
    assert same(trained(steppe.ActiveWindow(steppe.parse(spec), start=0.99)), trained(steppe.Plain()))


def test_a_window_with_all_steps_is_the_method_bit_for_bit():
    assert same(trained(steppe.ActiveWindow(steppe.SADT())), trained(steppe.SADT()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sam:rho=linear(0)", r"write linear\(start,end\)"),
        ("sam:rho=linear(0,x,3)", r"write linear\(start,end\)"),
        ("sam:rho=linear(-1,0.1,3)", "rho is Linear.*at least 0"),
        ("sam:rho=slope(0,1)", r"rho is 'slope\(0,1\)'; give a number or a schedule"),
        ("sam:rho=ramp(0,1,2)", "part is 2; give a part of the window"),
        ("sam:rho=with-lr(1,0)", "lr_max is 0"),
        ("sam:every=0", "every is 0; give at least 1"),
        ("sam:start=-1", "start is -1"),
        ("sam:start=0.5,stop=0.25", "stop is 0.25; give more than start, 0.5"),
        ("sam:start=many", "start is 'many'; give a number"),
        ("sam:every=0", "^SAM: every is 0"),
        ("sam:start=1e999", "SAM: start is inf; give a finite number"),
        ("sam:rho=linear(0,1e999)", "Linear: end is inf; give a finite number"),
        ("sam:rho=cosine(nan,1)", "Cosine: start is nan; give a finite number"),
        ("sam:rho=linear(0,1,-5)", "over is -5; give a number of steps"),
    ],
)
def test_impossible_schedules_are_refused(spec, message):
    with pytest.raises(steppe.InputError, match=message):
        steppe.methods.parse(spec)


def test_a_share_of_an_unknown_length_says_what_is_missing():
    net = small_net()
    with pytest.raises(steppe.InputError, match=r"start is 0.5, a share of the training.*bind with steps="):
        steppe.make("sam", start=0.5).bind(net, sgd(net))


def test_a_function_may_return_the_share_that_is_done():
    """As where a training ends after so many seconds, and its number of steps is unknown."""
    net, clock = nn.Linear(3, 2), [0.0]
    method = steppe.ActiveWindow(steppe.TwoStep(), start=0.3, stop=0.9)
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), steps=lambda: clock[0])
    updates = []
    for clock[0] in (0.0, 0.1, 0.4, 0.6, 0.9, 1.0):
        before = step.passes.updates
        step(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
        updates.append(step.passes.updates - before)
    assert updates == [1, 1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    "text", ["linear(0,0.1)", "linear(0,0.1,0.5)", "cosine(0.1,0,100)", "with-lr(0.1,0.05,0,0)"]
)
def test_text_of_a_schedule_reads_back(text):
    assert schedules.format_schedule(schedules.parse_schedule(text)) == text


def grouped(net: nn.Sequential, rho: object) -> torch.optim.Optimizer:
    own = {"params": net[0].parameters(), "rho": rho}
    return torch.optim.SGD([own, {"params": net[2].parameters()}], 0.0)


@pytest.mark.parametrize("own", [0.0, 0.2])
def test_a_parameter_group_has_its_own_rho(own):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    weights = []

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(z, y)

    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    steppe.SAM(rho=0.1).bind(net, grouped(net, own), loss=loss)(x, y)
    g = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
    moved = [b - a for a, b in zip(*weights, strict=True)]
    if own == 0.0:
        assert not any(m.any() for m in moved[:2])  # untouched, and out of the norm
        length = torch.stack([t.square().sum() for t in g[2:]]).sum().sqrt()
        expected = [torch.zeros_like(t) for t in g[:2]] + [0.1 * t / length for t in g[2:]]
    else:
        length = torch.stack([t.square().sum() for t in g]).sum().sqrt()
        expected = [own * t / length for t in g[:2]] + [0.1 * t / length for t in g[2:]]
    for m, w in zip(moved, expected, strict=True):
        assert torch.allclose(m, w, atol=1e-6)


def test_groups_that_are_all_untouched_are_plain_training():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD([{"params": net.parameters(), "rho": 0.0}], 0.1)
    step = steppe.SAM(rho=0.1).bind(net, optimizer)
    step(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    assert step.passes.per_step() == (1, 1, 1)


def first_distance(method: steppe.Method, optimizer: object) -> float:
    """Return the distance of the second pass of a step from the first."""
    net = nn.Linear(3, 2)
    weights = []

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        return nn.functional.cross_entropy(z, y)

    method.bind(net, optimizer(net.parameters()), loss=loss)(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    return float((weights[-1] - weights[0]).norm())


class Gamma(torch.optim.SGD):
    """An optimizer with a setting gamma, as AdaBound and MARS have."""

    def __init__(self, params: object, gamma: float = 30.0):
        super().__init__(params, 0.0)
        self.defaults["gamma"] = gamma
        for group in self.param_groups:
            group["gamma"] = gamma


class Wrapper:
    """An optimizer around another one, whose groups it shares, without defaults of its own."""

    def __init__(self, params: object):
        self.inner = torch.optim.Adadelta(params)
        self.param_groups, self.step = self.inner.param_groups, self.inner.step


def test_a_setting_of_the_optimizer_is_not_the_method_s():
    assert first_distance(steppe.SAM(rho=0.05), Wrapper) == pytest.approx(0.05, rel=1e-4)
    assert first_distance(steppe.SAM(rho=0.05), torch.optim.Adadelta) == pytest.approx(0.05, rel=1e-4)
    own, plain = (
        first_distance(steppe.RWP(gamma=0.01), optimizer)
        for optimizer in (Gamma, lambda params: torch.optim.SGD(params, 0.0))
    )
    assert own < 0.2 and plain < 0.2


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.1", [0.1]])
@pytest.mark.parametrize(("spec", "key"), [("sam", "rho"), ("gc+sam:stop=4", "rho"), ("lpf-sgd", "gamma")])
def test_an_impossible_value_of_a_parameter_group_is_refused_when_bound(spec, key, value):
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([{"params": net.parameters(), key: value}], 0.1)
    with pytest.raises(steppe.InputError, match=f"{key} is .* in a parameter group; give a finite number"):
        steppe.parse(spec).bind(net, optimizer)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize(("method", "key"), [(steppe.SAM, "rho"), (steppe.RWP, "gamma")])
def test_an_impossible_value_of_a_schedule_is_refused_when_it_is_read(method, key, value):
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    step = method(**{key: lambda t: value if t else 0.1}).bind(net, torch.optim.SGD(net.parameters(), 0.0))
    batch = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    step(*batch)
    with pytest.raises(steppe.InputError, match=f"{key} is {value}; give a finite number of at least 0"):
        step(*batch)
    assert torch.equal(net.weight, before)


def test_a_value_tied_to_the_learning_rate_stays_between_its_ends():
    schedule = WithLR(0.6, 0.1, low=0.2, lr_min=0.01)
    assert [schedule.at(TrainingProgress(0, None, lr)) for lr in (0.0, 0.001, 0.01, 0.1, 0.5)] == [
        *(pytest.approx(0.2),) * 3,
        *(pytest.approx(0.6),) * 2,
    ]
