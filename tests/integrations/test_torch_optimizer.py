"""Code for davda54's SAM with a changed import: the same steps as a bound method's."""

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.many import farthest, smooth_net, together
from support.small import small_batch, small_net
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import steppe
from steppe.integrations.torch_optimizer import SAMOptimizer
from steppe.testing import CHECKS, CheckContext, examine
from steppe.testing.third_party import ThirdParty

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}


def make_pass(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    return loss


def two_passes(net: nn.Module, optimizer: SAMOptimizer, *batch: Tensor) -> None:
    make_pass(net, *batch)
    optimizer.first_step(zero_grad=True)
    make_pass(net, *batch)
    optimizer.second_step(zero_grad=True)


def by_closure(net: nn.Module, optimizer: SAMOptimizer, *batch: Tensor) -> None:
    optimizer.step(lambda: make_pass(net, *batch))


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def values(net: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in net.state_dict().values()]


def groups(net: nn.Module, own_rho: bool) -> list[dict[str, Any]]:
    weights, biases = ([p for p in net.parameters() if (p.ndim > 1) == big] for big in (True, False))
    rhos = ({"rho": 0.5}, {"rho": 0.0}) if own_rho else ({}, {})
    return [{"params": weights[1:]}, {"params": weights[:1], **rhos[0]}, {"params": biases, **rhos[1]}]


@pytest.mark.parametrize("form", [two_passes, by_closure])
@pytest.mark.parametrize("own_rho", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_are_those_of_the_bound_method_bitwise(form, own_rho, adaptive):
    """With a scheduler, and a resume with a base optimizer that is made already."""
    net, other = small_net(dropout=0.0), small_net(dropout=0.0)
    method = steppe.ASAM(rho=0.3, scaling="all") if adaptive else steppe.SAM(rho=0.3)
    first, *rest = groups(net, own_rho)
    options: dict[str, Any] = {"rho": 0.3, "adaptive": adaptive, "model": net}
    optimizer = SAMOptimizer([first], torch.optim.SGD, **options, **SETTINGS)
    for group in rest:
        optimizer.add_param_group(group)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    base = torch.optim.SGD(groups(other, own_rho), **SETTINGS)
    step = method.bind(other, base)
    for k in range(4):
        if k == 2:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = SAMOptimizer(None, torch.optim.SGD(groups(net, own_rho), **SETTINGS), **options)
            optimizer.load_state_dict(state)
            assert len(optimizer.state) == len(list(net.parameters()))
        form(net, optimizer, *small_batch(seed=k))
        step(*small_batch(seed=k))
        if k < 2:
            scheduler.step()  # and no warning that there was no update
            for group in base.param_groups:
                group["lr"] *= 0.5
        assert not optimizer.skipped and farthest(values(net), values(other)) == 0


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(at):
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, **SETTINGS)
    two_passes(net, optimizer, *small_batch())
    before, state = values(net.eval()), copy.deepcopy(optimizer.state_dict()["state"])
    for number, step in enumerate((optimizer.first_step, optimizer.second_step), 1):
        make_pass(net, *small_batch(seed=2))
        if number == at:
            net[0].weight.grad[0, 0] = float("nan")
        step(zero_grad=True)
    momenta = [[s["momentum_buffer"] for s in of.values()] for of in (state, optimizer.state_dict()["state"])]
    assert optimizer.skipped and farthest(before, values(net)) == farthest(*momenta) == 0
    two_passes(net, optimizer, *small_batch(seed=2))
    assert not optimizer.skipped


@pytest.mark.parametrize("at", [1, 2])
def test_a_batch_that_is_not_finite_leaves_no_running_statistics(at):
    """A NaN in the inputs is in the statistics of its own pass: the closure form restores those of before."""
    net, passes = small_net(dropout=0.0), []
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, model=net, **SETTINGS)
    by_closure(net, optimizer, *small_batch())
    before, (x, y) = values(net), small_batch(seed=2)

    def closure() -> Tensor:
        passes.append(1)
        return make_pass(net, x * (float("nan") if len(passes) == at else 1), y)

    optimizer.step(closure)
    assert optimizer.skipped and len(passes) == at and farthest(before, values(net)) == 0
    by_closure(net, optimizer, x, y)
    assert not optimizer.skipped and all(map(torch.isfinite, map(Tensor.sum, values(net))))


@pytest.mark.parametrize("closure", [False, True])
def test_one_autocast_around_both_passes_is_one_around_each(closure):
    ends = []
    for whole, each in ((nullcontext, half), (half, nullcontext)):
        net = small_net(dropout=0.0)
        optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=1.0, **SETTINGS)
        for k in range(3):
            x, y = small_batch(seed=k)

            def one_pass(net=net, x=x, y=y, each=each) -> Tensor:
                with each():
                    loss = nn.functional.cross_entropy(net(x), y)
                loss.backward()
                return loss

            with whole():
                if closure:
                    optimizer.step(one_pass)
                else:
                    one_pass()
                    optimizer.first_step(zero_grad=True)
                    one_pass()
                    optimizer.second_step(zero_grad=True)
                update = [p.detach().clone() for p in net.parameters()]
                optimizer.zero_grad()
                one_pass()  # after the update, at its weights
            ends.append([*update, *(p.grad for p in net.parameters())])
    for one, other in zip(ends[:3], ends[3:], strict=True):
        assert farthest(one, other) == 0


def test_buffers_made_by_expand_or_in_the_first_pass_are_restored():
    net = nn.Sequential(Counting(), nn.Flatten(), nn.Linear(72, 5))
    net.register_buffer("table", torch.arange(3.0)[:, None].expand(3, 4))
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, model=net, **SETTINGS)
    for _ in range(3):
        two_passes(net, optimizer, *small_batch())
    assert int(net[0].count) == 3 and torch.equal(net.table[:, 1], torch.arange(3.0))


def test_a_step_that_was_not_finished_is_undone():
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=1.0, lr=0.0)
    before, passes = list(map(Tensor.clone, net.parameters())), iter([small_batch()])
    with pytest.raises(StopIteration):
        optimizer.step(lambda: make_pass(net, *next(passes)))
    assert farthest(before, list(net.parameters())) == 0
    make_pass(net, *small_batch())
    optimizer.first_step()
    assert farthest(before, list(net.parameters())) > 0
    two_passes(net, optimizer, *small_batch())
    assert farthest(before, list(net.parameters())) == 0


@pytest.mark.parametrize("form", [two_passes, by_closure])
def test_hooks_run_once_per_update_at_the_restored_weights(form):
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=1.0, lr=0.1)
    before, moved = list(map(Tensor.clone, net.parameters())), []
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        register(lambda *_: moved.append(farthest(before, list(net.parameters())) > 0))
    optimizer.register_state_dict_post_hook(lambda _, content: content | {"mark": 1})
    form(net, optimizer, *small_batch())
    assert moved == [False, True] and optimizer.state_dict()["mark"] == 1


class Counting(nn.Module):
    """Registers its buffer in the first forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "count"):
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.count += 1
        return x


class WithModes(torch.optim.SGD):
    mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_a_copy_and_the_base_optimizer_s_own_attributes():
    net = small_net(dropout=0.0)
    optimizer = SAMOptimizer(net.parameters(), WithModes, model=net, **SETTINGS)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps ``step``
    by_closure(net, optimizer, *small_batch())
    net_copy, other = copy.deepcopy((net, optimizer))
    assert isinstance(pickle.loads(pickle.dumps(optimizer)), SAMOptimizer)
    for n, o in ((net, optimizer), (net_copy, other)):
        by_closure(n, o, *small_batch(seed=1))
    assert farthest(values(net), values(net_copy)) == 0
    optimizer.eval()
    assert (optimizer.mode, optimizer.base_optimizer.mode, other.mode) == ("eval", "eval", "train")
    with pytest.raises(AttributeError):
        other.no_such_attribute  # noqa: B018


def flat_shards(rank: int) -> str:
    """Return the error for parameters that FSDP1 has flattened; the model is not given."""
    model = FullyShardedDataParallel(smooth_net(), use_orig_params=True, device_id=torch.device("cpu"))
    with pytest.raises(steppe.InputError) as error:
        SAMOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    return str(error.value)


def test_shards_of_fsdp1_are_refused():
    assert all("has a FullyShardedDataParallel" in message for message in together(2, flat_shards))


def of_process(rank: int) -> list[Tensor]:
    """Skip a step with a NaN in one process's first pass, which is not synchronised; then make one."""
    net = smooth_net()
    model = DistributedDataParallel(net)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=0.1, model=model, lr=0.1)
    before, (x, y) = values(net), small_batch()
    with model.no_sync():
        make_pass(model, x * (float("nan") if rank == 0 else 1), y)
    optimizer.first_step(zero_grad=True)
    make_pass(model, x, y)
    optimizer.second_step(zero_grad=True)
    assert optimizer.skipped and farthest(before, values(net)) == 0
    two_passes(model, optimizer, x[rank::2], y[rank::2])
    return values(net)


@pytest.mark.slow
def test_processes_skip_and_update_together():
    alone = smooth_net()
    two_passes(alone, SAMOptimizer(alone.parameters(), torch.optim.SGD, rho=0.1, lr=0.1), *small_batch())
    for weights in together(2, of_process):
        assert farthest(weights, values(alone)) < 1e-6


def test_what_it_cannot_do_is_an_error_that_names_bind():
    net = small_net()
    optimizer, scaler = SAMOptimizer(net.parameters(), torch.optim.SGD, lr=0.1), torch.amp.GradScaler("cpu")
    loss = nn.functional.cross_entropy(net(small_batch()[0]), small_batch()[1])
    scaler.scale(loss).backward()
    sgd, made = torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=0.1)

    def with_group(rho: Any) -> None:
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "rho": rho})

    for call, message in (
        (lambda: SAMOptimizer(net.parameters(), sgd, steppe.GSAM()), r"rho is GSAM.*method\.bind"),
        (lambda: SAMOptimizer(net.parameters(), sgd, rho=True), "rho is True"),
        (lambda: SAMOptimizer(net.parameters(), sgd, rho=float("inf")), "rho is inf"),
        (lambda: SAMOptimizer([{"params": net.parameters(), "rho": -1.0}], sgd, lr=0.1), "rho is -1.0"),
        (lambda: with_group(float("nan")), "rho is nan"),
        (lambda: SAMOptimizer(net.parameters(), steppe.GSAM()), r"base_optimizer is GSAM.*method\.bind"),
        (lambda: SAMOptimizer(net.parameters(), torch.optim.LBFGS), r"base_optimizer is LBFGS"),
        (lambda: SAMOptimizer(None, made, lr=0.2), "base_optimizer is already made and lr is given"),
        (lambda: scaler.step(optimizer), r"step needs a closure.*method\.bind"),
        (lambda: optimizer.step(lambda: scaler.scale(loss)), r"the closure scales its loss.*scaler\.unscale_"),
        (optimizer.second_step, "second_step without first_step"),
    ):
        with pytest.raises(steppe.InputError, match=message):
            call()
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.step(lambda: off.scale(make_pass(net, *small_batch())))
    assert torch.isfinite(scaler.scale(torch.ones(())))  # scales again


def test_it_passes_the_conformance_checks_that_a_loop_allows():
    subject = ThirdParty(type("SAM", (SAMOptimizer,), {}))
    names = "reduces reference restored batch-norm accumulation fp16 overflow clip-once resume"
    with CheckContext() as context:
        results = [examine(subject, CHECKS[name], context) for name in names.split()]
    assert {r.check: r.why for r in results if r.status != "pass"} == {}


def test_adadelta_s_own_rho_is_not_sam_s_and_impossible_ones_are_refused():
    net = nn.Linear(3, 2)
    optimizer = SAMOptimizer(net.parameters(), torch.optim.Adadelta, rho=0.05)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(4, 3)).square().sum().backward()
    optimizer.first_step()
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.05, rel=1e-4)
    for rho in (-0.1, float("nan"), float("inf"), True):
        with pytest.raises(steppe.InputError, match="rho is"):
            SAMOptimizer(net.parameters(), torch.optim.SGD, rho=rho, lr=0.1)
        with pytest.raises(steppe.InputError, match="rho is .* in a parameter group"):
            SAMOptimizer([{"params": net.parameters(), "rho": rho}], torch.optim.SGD, lr=0.1)
