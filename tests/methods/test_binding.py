"""Binding: transforms, what a step accepts, and a user's own method with state."""

import copy
import math
import typing
from dataclasses import dataclass, fields

import pytest
import torch
from support.small import bound, close, same, sgd, small_batch, small_net
from torch import Tensor, nn

import steppe
from steppe.core.runtime import Runtime, StepOutput
from steppe.methods import METHODS


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


def numbers() -> list[tuple[str, str, type]]:
    """Return every numeric setting of every method."""
    rows = []
    for name in METHODS:
        hints = typing.get_type_hints(type(steppe.make(name)))
        for f in fields(steppe.make(name)):
            kinds = typing.get_args(hints[f.name]) or (hints[f.name],)
            rows += [(name, f.name, k) for k in (int, float) if k in kinds and str not in kinds]
    return rows


@pytest.mark.parametrize(("name", "field", "kind"), numbers())
def test_every_number_of_every_method_is_finite_and_in_its_range(name: str, field: str, kind: type):
    assert len(numbers()) > 80
    limit = (steppe.make(name).limit or {}).get(field)
    for value in (math.nan, math.inf, -math.inf, -1, -0.5, True, 10**400):
        if value == limit or (kind is int and isinstance(value, float)):
            continue
        with pytest.raises(steppe.InputError, match=f"{field} is "):
            steppe.make(name, **{field: value})


def test_equal_settings_are_equal_texts_and_load_each_other_s_state():
    pairs = [
        ("sam:rho=1", "sam:rho=1.0"),
        ("sam:rho=linear(0,1)", "sam:rho=linear(0.0,1.0)"),
        ("mesa", "mesa:start=0.0"),
    ]
    for a, b in pairs:
        assert repr(steppe.parse(a)) == repr(steppe.parse(b))
        steps = [bound(steppe.parse(spec))[1] for spec in (a, b)]
        steps[1].load_state_dict(steps[0].state_dict())


@pytest.mark.parametrize(
    "method", [steppe.Plain(), steppe.MESA(), steppe.SAM(), steppe.On(steppe.SAM(), steppe.MESA())]
)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, y: nn.functional.cross_entropy(z, y).item(), "the loss returned float; return a tensor"),
        (lambda z, y: nn.functional.cross_entropy(z, y).detach(), "the loss has no gradient"),
        (lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"), r"the loss returned shape \(12,\)"),
    ],
)
def test_a_loss_without_a_graph_is_refused(method, loss, message):
    net = small_net()
    before = net[0].weight.detach().clone()
    with pytest.raises(steppe.InputError, match=message):
        method.bind(net, sgd(net), loss=loss)(*small_batch())
    assert torch.equal(net[0].weight, before)


def test_complex_weights_are_refused():
    net = nn.Linear(3, 2, dtype=torch.complex64)
    with pytest.raises(steppe.InputError, match=r"a parameter of shape \(2, 3\) is torch.complex64"):
        steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1))
