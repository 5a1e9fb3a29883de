"""Binding: transforms, what a step accepts, and a user's own method with state."""

import copy
import re
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from support.small import BARE, bound, close, same, sgd, small_batch, small_net
from torch import Tensor, nn

import steppe
from steppe.core.runtime import Runtime, StepOutput


def test_transforms_of_bind_are_those_of_a_combination():
    nets = [small_net(), small_net()]
    steps = [
        steppe.SAM().bind(nets[0], sgd(nets[0]), transforms=[steppe.GC(), steppe.AGC()]),
        steppe.On(steppe.AGC(), steppe.On(steppe.SAM(), steppe.GC())).bind(nets[1], sgd(nets[1])),
    ]
    for step in steps:
        torch.manual_seed(3)
        step(*small_batch())
    assert same(nets[0], nets[1])


def test_an_optimizer_that_writes_into_gradients_does_not_change_the_second_update():
    """Nesterov momentum over several tensors at once adds the momentum into the gradient."""
    nets = [small_net(), small_net()]
    for net, foreach in zip(nets, (True, False), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, foreach=foreach)
        step = steppe.RepeatStep().bind(net, optimizer)
        for k in range(3):
            torch.manual_seed(k)
            step(*small_batch(seed=k))
    assert close(nets[0], nets[1], rtol=1e-5, atol=1e-7)


def test_a_step_takes_pairs_batches_and_lists_alike():
    x, y = small_batch()
    forms = [(x, y), (steppe.Batch(x, y),), ((x, y),), ([(x, y)],), ([steppe.Batch(x, y)],)]
    outs = []
    for form in forms:
        net = small_net()
        torch.manual_seed(3)
        outs.append(steppe.SAM().bind(net, sgd(net))(*form).logits)
    assert all(torch.equal(outs[0], o) for o in outs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'; choose one of fp32, bf16"),
        ({"clip": 0.0}, "clip is 0.0; give a number above 0"),
        ({"microbatch": 0}, "microbatch is 0"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net), **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "list of micro-batches is empty"),
        ("x", "this is str"),
        ((torch.zeros(0, 2, 6, 6), torch.zeros(0)), "no samples"),
    ],
)
def test_an_argument_that_is_not_a_batch_is_refused(x, message):
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net))(x)


@dataclass(frozen=True)
class Averaged(steppe.Method):
    """A user's own method: it keeps a running mean of the weights, and deploys that."""

    decay: float = 0.5

    def init(self, net: nn.Module) -> nn.Module:
        return copy.deepcopy(net).requires_grad_(False)

    def after(self, batch: steppe.Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        for mean, p in zip(state.parameters(), rt.net.parameters(), strict=True):
            mean.lerp_(p.detach(), 1 - self.decay)

    def predict(self, net: nn.Module, state: nn.Module, x: Tensor) -> Tensor:
        state.eval()
        z: Tensor = state(x)
        return z


def test_a_user_s_method_has_state_deploys_and_combines():
    net, step = bound(steppe.On(steppe.SAM(), Averaged(decay=0.5)), small_net(dropout=0.0))
    mean = net[0].weight.detach().clone()
    for k in range(3):
        step(*small_batch(seed=k))
        mean = 0.5 * mean + 0.5 * net[0].weight.detach()
    state = step.state.get_submodule("base")
    assert torch.allclose(state[0].weight, mean)
    assert step.passes.per_step() == (2, 2, 1)
    x, _ = small_batch()
    assert torch.equal(step.predict(x), state(x))

    other_net = small_net(5, dropout=0.0)
    other = steppe.On(steppe.SAM(), Averaged(decay=0.5)).bind(other_net, sgd(other_net))
    other.load_state_dict(step.state_dict())
    assert torch.equal(other.predict(x), step.predict(x))
    with pytest.raises(steppe.InputError, match="this state belongs to On"):
        steppe.SAM().bind(net, sgd(net)).load_state_dict(step.state_dict())


def test_wrong_types_are_refused():
    net = small_net()
    scheduler = torch.optim.lr_scheduler.StepLR(sgd(net), 1)
    with pytest.raises(steppe.InputError, match="optimizer is of type StepLR; give a torch.optim.Optimizer"):
        steppe.SAM().bind(net, scheduler)
    with pytest.raises(steppe.InputError, match="model is of type function; give a torch.nn.Module"):
        steppe.SAM().bind(lambda x: x, sgd(net))
    with pytest.raises(steppe.InputError, match="Averaged: decay is 'half'; give a number"):
        Averaged(decay="half")


def test_text_is_parsed_and_a_name_is_made():
    assert steppe.parse("sam:rho=0.1") == steppe.make("sam", rho=0.1) == steppe.SAM(rho=0.1)
    with pytest.raises(steppe.InputError, match="unknown method 'sam:rho=0.1'; steppe.parse reads settings"):
        steppe.make("sam:rho=0.1")
    with pytest.raises(steppe.InputError, match=r"ascents is 0.1; give a whole number \(its default is 1\)"):
        steppe.SAM(0.05, 0.1)


@dataclass(frozen=True)
class Halved(steppe.Method):
    """Deploys the weights times one half, in place, and predicts with the logits' sign changed."""

    @contextmanager
    def deployed_weights(self, net: nn.Module, state: nn.Module):
        before = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.5)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, b in zip(net.parameters(), before, strict=True):
                    p.copy_(b)

    def predict(self, net: nn.Module, state: nn.Module, x: Tensor) -> Tensor:
        with self.deployed_weights(net, state):
            return -net(x)


@pytest.mark.parametrize("other", [steppe.GC(), steppe.MESA(), steppe.SAM()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("first", [True, False])
def test_a_user_s_rule_that_deploys_and_predicts_swaps_its_weights_once(other, first):
    method = steppe.On(Halved(), other) if first else steppe.On(other, Halved())
    net, step = bound(method, small_net(dropout=0.0))
    step(*small_batch())
    net.eval()
    before, half = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        for p in half.parameters():
            p.mul_(0.5)
    x, _ = small_batch(seed=4)
    assert torch.equal(step.predict(x), -half(x))
    assert torch.equal(method.outputs(net, step.state, x)["deployed"], -half(x))
    assert torch.equal(method.deployed_model(net, step.state, small_net).eval()(x), half(x))
    with step.deployed_weights():
        assert same(net, half)
    assert same(net, before)


E1, E2 = steppe.EMA(), steppe.EMA(decay=0.9)


@pytest.mark.parametrize(
    ("rule", "base", "message"),
    [
        (E1, steppe.PCL(), "EMA and PCL both define the deployed weights"),
        (steppe.SWA(), steppe.PCL(), "SWA and PCL both define the deployed weights"),
        (E1, E1, "EMA and EMA both"),
        (E1, E2, "EMA and EMA both"),
        (steppe.SAM(), steppe.On(steppe.SWA(), steppe.SAM()), "SAM and SAM both define the step"),
        (steppe.DML(), steppe.KDCL(), "DML and KDCL both define the objective"),
        (E1, Averaged(), "EMA and Averaged both define the deployed model"),
        (Averaged(), steppe.SWA(), "Averaged and SWA both define the deployed model"),
        (Averaged(), Averaged(), "Averaged and Averaged both define the deployed model"),
    ],
)
def test_a_pair_in_which_one_method_is_lost_is_refused(rule, base, message):
    with pytest.raises(steppe.InputError, match=message):
        steppe.On(rule, base)


def test_a_refused_combination_is_named_as_it_was_written():
    for spec in ("ema+pcl", "ema+swa+ema", "sam+swa+sam", "esam+dml", "dml+sadt-v1"):
        with pytest.raises(steppe.InputError, match=re.escape(f"method {spec!r}: ")):
            steppe.parse(spec)


@dataclass(frozen=True)
class Counter(steppe.Method):
    def init(self, net: nn.Module) -> nn.Module:
        state = nn.Module()
        state.register_buffer("count", torch.zeros(()))
        return state

    def after(self, batch: steppe.Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        state.count += 1


def test_one_method_combined_with_itself_has_two_states():
    counter = Counter()
    _, step = bound(steppe.On(counter, counter))
    step(*small_batch())
    assert [int(step.state.get_submodule(role).count) for role in ("rule", "base")] == [1, 1]


@pytest.mark.parametrize("spec", ["dml+ema:decay=0.5", "ema:decay=0.5+dml"])
def test_a_combination_of_a_mean_and_several_networks_is_the_same_in_either_order(spec):
    method = steppe.parse(spec)
    net = method.build(small_net)
    step = method.bind(net, sgd(net))
    for k in range(3):
        step(*small_batch(seed=k))
    net.eval()
    x, _ = small_batch()
    with step.deployed_weights():
        expected = net(x)[0]
    assert torch.equal(step.predict(x), expected)
    assert not torch.equal(expected, net(x)[0])
    assert torch.equal(method.deployed_model(net, step.state, small_net).eval()(x), expected)


@pytest.mark.parametrize(
    "spec",
    ["swa", "sam+swa", "mesa:start=0.5", "sam:start=0.5", "sam:rho=linear(0,0.1)", "pcl", "swa:start=0.9+gc"],
)
def test_a_share_of_a_training_of_unknown_length_is_refused_by_bind(spec):
    method = steppe.parse(spec)
    net = method.build(small_net)
    with pytest.raises(steppe.InputError, match="a share of the training, and its length is unknown"):
        method.bind(net, sgd(net))
    method.bind(net, sgd(net), steps=10)
    method.bind(net, sgd(net), steps=lambda: 0.0)


class Growing(nn.Module):
    """Gets a parameter and a BatchNorm layer, and then another number of channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(x))
        return z

    def grow(self, optimizer: torch.optim.Optimizer) -> None:
        self.body.extend([nn.Linear(8, 6), nn.BatchNorm1d(6)])
        self.head = nn.Linear(6, 5)
        new = [*self.body[4:].parameters(), *self.head.parameters()]
        optimizer.add_param_group({"params": new})


@pytest.mark.parametrize("name", [*BARE, "swa"])
def test_parameters_that_are_added_or_exchanged_during_training_are_taken_up(name):
    net = Growing()
    optimizer = sgd(net)
    method = steppe.SWA(start=0) if name == "swa" else steppe.make(name)
    step = method.bind(net, optimizer)
    for k in range(2):
        step(*small_batch(seed=k))
    net.grow(optimizer)
    x, _ = small_batch()
    assert torch.isfinite(step.predict(x)).all()
    net.train()
    before = net.body[4].weight.detach().clone()
    for k in range(2, 5):
        assert not step(*small_batch(seed=k)).skipped
    assert not torch.equal(net.body[4].weight, before)
    with step.deployed_weights():
        deployed = net(x)
    assert torch.equal(step.predict(x), deployed) and torch.isfinite(deployed).all()
