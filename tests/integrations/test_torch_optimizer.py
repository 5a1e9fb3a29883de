"""Old code with a new import: the same steps as a bound method's, and clear words where that cannot be."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
from support.small import sgd, small_batch, small_net
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

import steppe
from steppe.integrations.torch_optimizer import SAM, MethodOptimizer
from steppe.testing import CHECKS, CheckContext, examine
from steppe.testing.resolve import subjects_of

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}


def two_passes(net: nn.Module, optimizer: MethodOptimizer, x: Tensor, y: Tensor) -> None:
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.first_step(zero_grad=True)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.second_step(zero_grad=True)


def by_closure(net: nn.Module, optimizer: MethodOptimizer, x: Tensor, y: Tensor) -> Tensor:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure)


METHODS = [
    steppe.SAM(rho=0.1),
    steppe.ASAM(),
    steppe.GSAM(),
    steppe.WSAM(),
    steppe.MixedSAM(),
    steppe.RSAM(),
    steppe.RWP(),
    steppe.GC(),
    steppe.On(steppe.SAM(), steppe.AGC()),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("form", [two_passes, by_closure])
def test_it_is_the_bound_method_bit_for_bit(method, form):
    ours, theirs = small_net(dropout=0.0), small_net(dropout=0.0)
    step = method.bind(ours, sgd(ours), seed=3)
    optimizer = MethodOptimizer(method, sgd(theirs), theirs, seed=3)
    if isinstance(method, steppe.RSAM) and form is two_passes:
        with pytest.raises(steppe.InputError, match="begins with a pass elsewhere"):
            form(theirs, optimizer, *small_batch())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        return
    for k in range(4):
        step(*small_batch(seed=k))
        form(theirs, optimizer, *small_batch(seed=k))
        assert not optimizer.skipped
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_arguments_of_older_code_are_understood(adaptive):
    net, other = small_net(dropout=0.0), small_net(dropout=0.0)
    method = steppe.ASAM(rho=0.3, scaling="all") if adaptive else steppe.SAM(rho=0.3)
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.3, adaptive=adaptive, model=net, **SETTINGS)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    base = sgd(other)
    step = method.bind(other, base)
    for k in range(3):
        two_passes(net, optimizer, *small_batch(seed=k))
        step(*small_batch(seed=k))
        base.param_groups[0]["lr"] *= 0.5
        scheduler.step()  # and no warning that there was no update
    assert optimizer.param_groups[0]["lr"] == base.param_groups[0]["lr"]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    again = SAM(net.parameters(), torch.optim.SGD, **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert len(again.state) == len(list(net.parameters()))


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(at):
    net = small_net(dropout=0.0)
    optimizer = MethodOptimizer(steppe.SAM(), sgd(net), net)
    two_passes(net, optimizer, *small_batch())
    before, moments = copy.deepcopy(list(net.parameters())), copy.deepcopy(optimizer.state_dict())
    x, y = small_batch(seed=2)
    (net(x).mean() * (float("nan") if at == 1 else 1)).backward()
    optimizer.first_step()
    if at == 2:
        (net(x).mean() * float("inf")).backward()
    optimizer.second_step()
    assert optimizer.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    held = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(held, moments["state"][0]["momentum_buffer"])
    two_passes(net, optimizer, x, y)
    assert not optimizer.skipped


def test_a_step_that_was_left_in_the_middle_is_undone_by_the_next():
    net, other = small_net(dropout=0.0), small_net(dropout=0.0)
    optimizer, fresh = MethodOptimizer(steppe.SAM(rho=1.0), sgd(net), net), sgd(other)
    x, y = small_batch()
    buffers = copy.deepcopy(list(net.buffers()))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.first_step()
    assert not torch.equal(net[0].weight, other[0].weight)  # and here the user's code fails
    for b, kept in zip(net.buffers(), buffers, strict=True):
        b.copy_(kept)
    nn.functional.cross_entropy(other(x), y).backward()
    nn.functional.cross_entropy(net(x), y)
    optimizer.first_step()
    optimizer.second_step()
    del fresh
    two_passes(net, optimizer, x, y)
    assert not optimizer.skipped


@pytest.mark.parametrize("form", [two_passes, by_closure])
def test_a_step_that_is_over_leaves_no_thread(form, monkeypatch):
    # one that still frees its tensors while the interpreter ends aborts the process: 1 run of hundreds
    class SlowToEnd(threading.Thread):
        def run(self) -> None:
            super().run()
            time.sleep(0.2)

    monkeypatch.setattr(threading, "Thread", SlowToEnd)
    net = small_net()
    optimizer = MethodOptimizer(steppe.SAM(rho=0.1), sgd(net), net)
    form(net, optimizer, *small_batch())
    assert not any(isinstance(thread, SlowToEnd) for thread in threading.enumerate())


def test_a_closure_that_scales_its_loss_is_refused():
    net = small_net()
    optimizer = MethodOptimizer(steppe.SAM(), sgd(net), net)
    scaler = GradScaler("cpu", init_scale=2.0**16)
    x, y = small_batch()
    before = copy.deepcopy(list(net.parameters()))

    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        return loss

    with pytest.raises(steppe.InputError, match="multiplied by a GradScaler's scale"):
        optimizer.step(closure)
    scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(steppe.InputError, match="needs its passes"):
        scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert scaler.scale(torch.ones(())) == 2.0**16  # nothing is left behind


def test_an_exception_in_a_closure_leaves_the_weights():
    net = small_net(dropout=0.0)
    optimizer = MethodOptimizer(steppe.SAM(rho=1.0), sgd(net), net)
    before, calls = copy.deepcopy(list(net.parameters())), []
    x, y = small_batch()

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_what_the_form_cannot_do_is_said():
    net = small_net()
    with pytest.raises(steppe.InputError, match="remembers something between steps"):
        MethodOptimizer(steppe.LookSAM(), sgd(net), net)
    with pytest.raises(steppe.InputError, match="second_step without first_step"):
        MethodOptimizer(steppe.SAM(), sgd(net), net).second_step()
    optimizer = MethodOptimizer(steppe.SAM(ascents=2), sgd(net), net)
    before = copy.deepcopy(list(net.parameters()))
    with pytest.raises(steppe.InputError, match="makes more than two passes"):
        two_passes(net, optimizer, *small_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    by_closure(net, optimizer, *small_batch())
    for method in (steppe.SADT(), steppe.ESAM()):
        before = copy.deepcopy(list(net.parameters()))
        with pytest.raises(steppe.InputError, match="runs passes or a loss of its own"):
            by_closure(net, MethodOptimizer(method, torch.optim.SGD(net.parameters(), 0.0), net), *small_batch())
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_it_goes_on_the_table_of_other_packages():
    """Fails what is left to the user: the loop's own exception between the two passes."""
    [subject] = subjects_of(["steppe.integrations.torch_optimizer:SAM"])
    names = ["reduces", "reference", "restored", "accumulation", "fp16", "clip-once", "resume"]
    with CheckContext() as lab:
        results = [examine(subject, CHECKS[name], lab) for name in names]
    assert {r.check: r.why for r in results if r.status != "pass"} == {}
