"""Binding: precision, clipping, transforms, what a step accepts, and a user's own method with a memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from support.small import BARE, adam, sgd, small_batch, small_net
from torch import Tensor, nn

import steppe
from steppe.core.runtime import Runtime, StepOutput


@pytest.mark.parametrize("name", BARE)
def test_bf16_keeps_fp32_weights_and_trains_beside_fp32(name):
    nets = [small_net(dropout=0.0), small_net(dropout=0.0)]
    steps = [
        steppe.make(name).bind(net, sgd(net, lr=0.01), precision=p)
        for net, p in zip(nets, ("fp32", "bf16"), strict=True)
    ]
    for k in range(5):
        outs = [step(*small_batch(seed=k)) for step in steps]
        assert not outs[1].skipped
        assert outs[1].loss.dtype == torch.float32
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=0.05)
    assert not torch.equal(nets[0][0].weight, nets[1][0].weight)


def test_at_rho_zero_bf16_is_plain_bf16_bit_for_bit():
    nets = [small_net(), small_net()]
    for net, method in zip(nets, (steppe.Plain(), steppe.SAM(rho=0.0)), strict=True):
        torch.manual_seed(3)
        method.bind(net, sgd(net), precision="bf16")(*small_batch())
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "name", [n for n in BARE if n not in ("repeat-step", "two-step", "wsam") and "sadt" not in n]
)
def test_clipping_bounds_the_one_update_and_only_it(name):
    net = small_net()
    before = [p.detach().clone() for p in net.parameters()]
    step = steppe.make(name).bind(net, torch.optim.SGD(net.parameters(), 1.0), clip=1e-3)
    step(*small_batch())
    moved = sum((a - b).square().sum() for a, b in zip(before, net.parameters(), strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


def test_a_clip_that_does_not_bind_changes_no_bit():
    nets = [small_net(), small_net()]
    for net, clip in zip(nets, (None, 1e6), strict=True):
        torch.manual_seed(3)
        steppe.SAM().bind(net, adam(net), clip=clip)(*small_batch())
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_transforms_given_to_bind_are_those_of_a_combination():
    nets = [small_net(), small_net()]
    steps = [
        steppe.SAM().bind(nets[0], sgd(nets[0]), transforms=[steppe.GC(), steppe.AGC()]),
        steppe.On(steppe.AGC(), steppe.On(steppe.SAM(), steppe.GC())).bind(nets[1], sgd(nets[1])),
    ]
    for step in steps:
        torch.manual_seed(3)
        step(*small_batch())
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_that_writes_into_gradients_does_not_change_the_second_update():
    """Nesterov momentum over several tensors at once adds the momentum into the gradient it was given."""
    nets = [small_net(), small_net()]
    for net, foreach in zip(nets, (True, False), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, foreach=foreach)
        step = steppe.RepeatStep().bind(net, optimizer)
        for k in range(3):
            torch.manual_seed(k)
            step(*small_batch(seed=k))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


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
def test_arguments_that_mean_nothing_are_refused(options, message):
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net), **options)


@pytest.mark.parametrize(("given", "message"), [([], "list of micro-batches is empty"), ("x", "this is str")])
def test_what_is_no_batch_is_refused(given, message):
    net = small_net()
    with pytest.raises(steppe.InputError, match=message):
        steppe.SAM().bind(net, sgd(net))(given)


@dataclass(frozen=True)
class Averaged(steppe.Method):
    """A user's own method: remembers a running mean of the weights and deploys that."""

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


def test_a_user_s_method_remembers_deploys_and_combines():
    net = small_net(dropout=0.0)
    step = steppe.On(steppe.SAM(), Averaged(decay=0.5)).bind(net, sgd(net))
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


def test_a_user_s_method_with_a_wrong_field_says_so():
    with pytest.raises(steppe.InputError, match="Averaged: decay is 'half'; give a number"):
        Averaged(decay="half")


def test_what_is_no_model_and_no_optimizer_is_said():
    net = small_net()
    scheduler = torch.optim.lr_scheduler.StepLR(sgd(net), 1)
    with pytest.raises(steppe.InputError, match="optimizer is of type StepLR; give a torch.optim.Optimizer"):
        steppe.SAM().bind(net, scheduler)
    with pytest.raises(steppe.InputError, match="model is of type function; give a torch.nn.Module"):
        steppe.SAM().bind(lambda x: x, sgd(net))


def test_text_is_parsed_and_a_name_is_made():
    assert steppe.parse("sam:rho=0.1") == steppe.make("sam", rho=0.1) == steppe.SAM(rho=0.1)
    with pytest.raises(steppe.InputError, match="unknown method 'sam:rho=0.1'; steppe.parse reads settings"):
        steppe.make("sam:rho=0.1")
    with pytest.raises(steppe.InputError, match=r"ascents is 0.1; give a whole number \(its default is 1\)"):
        steppe.SAM(0.05, 0.1)


def test_the_deployed_mean_is_also_to_be_had_in_inference_mode():
    """What is copied there is used again outside, where an inference tensor could not be written to."""
    net = small_net(dropout=0.0)
    step = steppe.EMA(decay=0.5).bind(net, sgd(net))
    x, y = small_batch()
    for _ in range(2):
        step(x, y)
        trained = [p.detach().clone() for p in net.parameters()]
        with torch.inference_mode(), step.deployed_weights():
            inside = net(x)
        assert torch.equal(inside, step.predict(x))
        assert all(torch.equal(a, b) for a, b in zip(trained, net.parameters(), strict=True))
