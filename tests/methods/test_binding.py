"""Binding: transforms, what a step accepts, and a user's own method with state."""

import copy
from dataclasses import dataclass

import pytest
import torch
from support.small import bound, close, same, sgd, small_batch, small_net
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
