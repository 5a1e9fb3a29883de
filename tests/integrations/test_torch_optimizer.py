"""Code for davda54's SAM with a changed import: the same steps as a bound method's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.many import farthest, smooth_net, together
from support.small import sgd, small_batch, small_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe
from steppe.integrations.torch_optimizer import SAMOptimizer
from steppe.testing import CHECKS, CheckContext, examine
from steppe.testing.third_party import ThirdParty

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(x), y)


def two_passes(net: nn.Module, optimizer: SAMOptimizer, x: Tensor, y: Tensor) -> None:
    loss_of(net, x, y).backward()
    optimizer.first_step(zero_grad=True)
    loss_of(net, x, y).backward()
    optimizer.second_step(zero_grad=True)


def by_closure(net: nn.Module, optimizer: SAMOptimizer, x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        loss = loss_of(net, x, y)
        loss.backward()
        return loss

    return optimizer.step(closure)


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("form", [two_passes, by_closure])
@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_are_those_of_the_bound_method_bitwise(form, adaptive):
    """With a schedule, a base optimizer's class or object, a group's own rho, and a resume in the middle."""
    net, other = small_net(dropout=0.0), small_net(dropout=0.0)
    method = steppe.ASAM(rho=0.3, scaling="all") if adaptive else steppe.SAM(rho=0.3)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=0.3, adaptive=adaptive, model=net, **SETTINGS)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    base = sgd(other)
    step = method.bind(other, base)
    for k in range(4):
        if k == 2:
            again = SAMOptimizer(None, sgd(net), rho=0.3, adaptive=adaptive, model=net)
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            assert again.param_groups[0]["lr"] == 0.025 and len(again.state) == len(list(net.parameters()))
            optimizer = again
            optimizer.param_groups[0]["rho"] = base.param_groups[0]["rho"] = 0.1
        form(net, optimizer, *small_batch(seed=k))
        step(*small_batch(seed=k))
        if k < 2:
            scheduler.step()  # and no warning that there was no update
            base.param_groups[0]["lr"] *= 0.5
        assert not optimizer.skipped
        assert equal(net.state_dict().values(), other.state_dict().values())


def test_groups_with_a_rho_of_their_own_are_those_of_the_bound_method():
    net, other = small_net(dropout=0.0), small_net(dropout=0.0)

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        weights = [[p for p in model.parameters() if (p.ndim > 1) == big] for big in (True, False)]
        first, *rest = weights[0]
        return [{"params": [first], "rho": 0.5}, {"params": rest}, {"params": weights[1], "rho": 0.0}]

    optimizer = SAMOptimizer(groups(net)[:2], torch.optim.SGD, rho=0.2, model=net, lr=0.1)
    optimizer.add_param_group(groups(net)[2])
    step = steppe.SAM(rho=0.2).bind(other, torch.optim.SGD(groups(other), 0.1))
    for k in range(2):
        two_passes(net, optimizer, *small_batch(seed=k))
        step(*small_batch(seed=k))
    assert equal(net.state_dict().values(), other.state_dict().values())


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(at):
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, model=net, **SETTINGS)
    two_passes(net, optimizer, *small_batch())
    before, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    for number, step in enumerate((optimizer.first_step, optimizer.second_step), 1):
        net.eval()
        (loss_of(net, *small_batch(seed=2)) * (float("nan") if at == number else 1)).backward()
        step(zero_grad=True)
    assert optimizer.skipped and equal(net.state_dict().values(), before.values())
    after = optimizer.state_dict()["state"]
    assert equal([s["momentum_buffer"] for s in after.values()], [s["momentum_buffer"] for s in state.values()])
    two_passes(net.train(), optimizer, *small_batch(seed=2))
    assert not optimizer.skipped


def test_a_step_that_was_not_finished_is_undone():
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=1.0, lr=0.0, model=net)
    before, calls = [p.detach().clone() for p in net.parameters()], []

    def closure() -> Tensor:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        loss = loss_of(net, *small_batch())
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert equal(net.parameters(), before)
    loss_of(net, *small_batch()).backward()
    optimizer.first_step()
    assert not equal(net.parameters(), before)
    two_passes(net, optimizer, *small_batch())
    assert equal(net.parameters(), before)


@pytest.mark.parametrize("form", [two_passes, by_closure])
def test_hooks_run_once_per_update_at_the_restored_weights(form):
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=1.0, lr=0.1)
    before, calls = [p.detach().clone() for p in net.parameters()], []
    optimizer.register_step_pre_hook(lambda *_: calls.append(equal(net.parameters(), before)))
    optimizer.register_step_post_hook(lambda *_: calls.append(not equal(net.parameters(), before)))
    optimizer.register_state_dict_post_hook(lambda _, content: content | {"mark": 1})
    form(net, optimizer, *small_batch())
    assert calls == [True, True] and optimizer.state_dict()["mark"] == 1


def of_process(rank: int) -> list[Tensor]:
    """Skip a step with a NaN in one process's first pass, which is not synchronised; then make one."""
    net = smooth_net()
    model = DistributedDataParallel(net)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=0.1, model=model, lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    x, y = small_batch()
    with model.no_sync():
        (loss_of(model, x, y) * (float("nan") if rank == 0 else 1)).backward()
    optimizer.first_step(zero_grad=True)
    loss_of(model, x, y).backward()
    optimizer.second_step(zero_grad=True)
    assert optimizer.skipped and equal(net.parameters(), before)
    two_passes(model, optimizer, x[rank::2], y[rank::2])
    return [p.detach().clone() for p in net.parameters()]


def test_processes_skip_and_update_together():
    alone = smooth_net()
    two_passes(alone, SAMOptimizer(alone.parameters(), torch.optim.SGD, rho=0.1, lr=0.1), *small_batch())
    for weights in together(2, of_process):
        assert farthest(weights, list(alone.parameters())) < 1e-6


def test_what_it_cannot_do_is_an_error_that_names_bind():
    net = small_net()
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(net, *small_batch())).backward()
    for call, message in (
        (lambda: SAMOptimizer(net.parameters(), torch.optim.SGD, steppe.GSAM()), r"rho is GSAM.*method\.bind"),
        (lambda: SAMOptimizer(net.parameters(), steppe.GSAM()), r"base_optimizer is GSAM.*method\.bind"),
        (lambda: scaler.step(optimizer), r"step needs a closure.*method\.bind"),
        (optimizer.second_step, "second_step without first_step"),
    ):
        with pytest.raises(steppe.InputError, match=message):
            call()


def test_it_passes_the_conformance_checks_that_the_loop_allows():
    """It fails what is left to the user: the loop's own exception between the two passes, and dropout masks."""
    subject = ThirdParty(type("SAM", (SAMOptimizer,), {}))
    names = [
        "reduces",
        "reference",
        "restored",
        "batch-norm",
        "accumulation",
        "fp16",
        "overflow",
        "clip-once",
        "resume",
    ]
    with CheckContext() as context:
        results = [examine(subject, CHECKS[name], context) for name in names]
    assert {r.check: r.why for r in results if r.status != "pass"} == {}
