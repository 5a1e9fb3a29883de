"""Gradients in ``.grad``, and the reads that make the host wait for a GPU.

Reads are counted on the CPU, where one is the operation that turns a tensor into a number. A GPU's process does
what is done here with ``on_device`` on.
"""

import inspect
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from steppe.core import user_loss
from steppe.core.batch import Batch
from steppe.core.execution import _operations
from steppe.core.method import Method, ScheduleValue, hyper
from steppe.core.model_call import reuses_outputs
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.state import weight_average
from steppe.core.state.param_state import TensorCopies
from steppe.core.state.snapshot import Buffers
from steppe.core.state.weight_average import WeightAverage
from steppe.core.step import Step
from steppe.core.step_state import BindOptions
from steppe.errors import InputError
from steppe.methods import METHODS, make
from steppe.testing import fixtures


def step_of(method: Method, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD) -> Step:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    return method.bind(net, optimizer(net.parameters(), 0.1))


@dataclass(frozen=True)
class NoUpdate(Method):
    """Take a gradient, and make no update."""

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        out, _ = rt.grad(batch)
        return out


@dataclass(frozen=True)
class Negated(Method):
    """Update with other gradients than those in ``.grad``: the last pass's, negated."""

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        out, g = rt.grad(batch)
        rt.apply([None if t is None else -t for t in g])
        return out


def after(
    method: Method, *, stale: bool, clip: float | None = None, steps: int = 2
) -> tuple[list[Tensor], nn.Module]:
    torch.manual_seed(0)
    net = fixtures.small()
    step = method.bind(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), clip=clip)
    for k in range(steps):
        for p in net.parameters():
            p.grad = torch.ones_like(p) if stale else None
        step(fixtures.batch(k))
    return [p.detach().clone() for p in net.parameters()], net


@pytest.mark.parametrize("name", ["plain", "sam", "looksam", "sadt-v1", "repeat-step"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradients_from_before_a_step_do_not_count(name: str, clip: float | None) -> None:
    clean, _ = after(make(name), stale=False, clip=clip)
    stale, net = after(make(name), stale=True, clip=clip)
    assert all(torch.equal(a, b) for a, b in zip(clean, stale, strict=True))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["plain", "sam"])
@pytest.mark.parametrize("frozen", ["before bind", "after a step", "between steps"])
def test_an_old_gradient_of_a_frozen_parameter_moves_nothing(name: str, frozen: str) -> None:
    torch.manual_seed(0)
    net = fixtures.small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    first = net[0]

    def freeze() -> Tensor:
        net(fixtures.batch(9).x).square().sum().backward()
        first.requires_grad_(False)
        return first.weight.detach().clone()

    before = freeze() if frozen == "before bind" else None
    first.requires_grad_(frozen == "after a step")
    step = make(name).bind(net, optimizer)
    if before is None:
        step(fixtures.batch(0))
        first.requires_grad_(True)
        before = freeze()
    for k in range(3):
        step(fixtures.batch(k))
    assert torch.equal(before, first.weight)
    assert all(p.grad is None for p in net.parameters())


def test_the_update_uses_the_gradient_of_apply_and_leaves_none_in_grad() -> None:
    plain, _ = after(make("plain"), stale=False, steps=1)
    negated, _ = after(Negated(), stale=False, steps=1)
    torch.manual_seed(0)
    start = [p.detach() for p in fixtures.small().parameters()]
    assert max((a - s).abs().max().item() for a, s in zip(plain, start, strict=True)) > 1e-3
    for a, b, s in zip(plain, negated, start, strict=True):
        assert torch.allclose(a - s, s - b, rtol=0, atol=1e-6)
    _, net = after(NoUpdate(), stale=False)
    assert all(p.grad is None for p in net.parameters())


READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
READS |= {"aten::is_nonzero", "aten::item", "aten::_unique", "aten::unique_dim", "aten::unique_consecutive"}
# SAF's logit bank is in the host's memory: whether samples are old, and whether the step was skipped; AE-SAM:
# whether a pass is worth it
MORE = {"saf": 2, "ae-sam": 1}
REPRESENTATIVE = ["plain", "sam", "two-step", "sadt-v1", "esam", "looksam", "mesa", "dml-alternating"]


@dataclass(frozen=True)
class OfOwnLoss(Method):
    """Update with the gradient of a sum that has a hook, which backward() runs, or of a loss that is no number."""

    scalar: bool = True

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        def objective(part: Batch) -> StepOutput:
            logits = rt.forward(part.x)
            loss = logits.square().sum() if self.scalar else logits.square().sum(1)
            loss.register_hook(lambda g: 2 * g)
            return StepOutput(loss, logits)

        out, g = rt.grad(batch, objective)
        rt.apply(g)
        return out


def test_a_pass_is_that_of_backward() -> None:
    torch.manual_seed(0)
    ours, reference = fixtures.small(), fixtures.small()
    reference.load_state_dict(ours.state_dict())
    batch = fixtures.batch(0)
    torch.manual_seed(1)
    OfOwnLoss().bind(ours, torch.optim.SGD(ours.parameters(), 0.1))(batch)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1)
    torch.manual_seed(1)
    loss = reference(batch.x).square().sum()
    loss.register_hook(lambda g: 2 * g)
    loss.backward()
    optimizer.step()
    pairs = zip(ours.state_dict().values(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    step = OfOwnLoss(scalar=False).bind(ours, torch.optim.SGD(ours.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="scalar"):
        step(batch)


@pytest.mark.parametrize("name", ["sadt-v1", "repeat-step"])
def test_an_optimizer_that_writes_into_gradients_changes_no_later_update(name: str) -> None:
    def trained(writes: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = fixtures.small()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        if writes:
            optimizer.register_step_post_hook(lambda *_: [p.grad.mul_(7) for p in net.parameters()])
        # of vectors the transform returns the gradient itself
        step = make(name).bind(net, optimizer, transforms=[make("gc")])
        for k in range(2):
            step(fixtures.batch(k))
        return [p.detach() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


class CountReads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in READS
        return func(*args, **(kwargs or {}))


def bound(name: str, *, on_device: bool, fused: bool = True) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    method = make(name)
    net = method.build(fixtures.small)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=fused)
    step = method.bind(net, optimizer, steps=100, epoch=50)
    method.allocate(step.state, 100, 5)
    step.runtime.on_device = on_device
    for part in step.state.modules():
        if isinstance(part, WeightAverage):
            part.on_device = on_device
    return net, step


def reads(step: Step, first: int, count: int) -> list[int]:
    counts = []
    for k in range(first, first + count):
        batch = fixtures.batch(k)
        with CountReads() as mode:
            step(batch)
        counts.append(mode.count)
    return counts


@pytest.mark.parametrize("name", METHODS)
def test_the_host_waits_for_no_step_on_a_gpu(name: str, monkeypatch) -> None:
    monkeypatch.setattr(user_loss, "CHECKED_STEPS", 2)
    monkeypatch.setattr(weight_average, "_COMPARED", 2)
    for fused in (True, False) if name in REPRESENTATIVE else (True,):
        _, step = bound(name, on_device=True, fused=fused)
        reads(step, 0, 2)
        assert reads(step, 2, 6) == [MORE.get(name, 0)] * 6


@pytest.mark.parametrize("name", [name for name in METHODS if make(name).state_type is not nn.Module])
def test_a_step_that_the_device_skips_leaves_a_method_s_state(name: str) -> None:
    """Averages aside, which take the unchanged weights once more."""
    _, step = bound(name, on_device=True)
    averages = [m for m in step.state.modules() if isinstance(m, TensorCopies)]
    for k in range(3):
        step(fixtures.batch(k))
    before = {k: v.clone() for k, v in step.state.state_dict().items() if isinstance(v, Tensor)}
    batch = fixtures.batch(3)
    batch.x[0] = float("nan")
    assert step(batch).skipped
    if not averages:
        after = step.state.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items() if "extra_state" not in k), before
    step(fixtures.batch(4))
    assert all(v.isfinite().all() for v in step.state.state_dict().values() if isinstance(v, Tensor))


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, storage):
        return storage[: len(z)].copy_(z).detach()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Overwrites(nn.Module):
    """Return outputs in storage that the next call overwrites, as torch.compile does with CUDA graphs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.storage = net, torch.zeros(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return _Copied.apply(self.net(x), self.storage)


@pytest.mark.parametrize("name", ["sam", "esam", "sadt-v1", "gsam"])
def test_outputs_that_the_next_call_overwrites_are_copied(name: str) -> None:
    ends = []
    for wrap in (nn.Sequential, Overwrites):
        torch.manual_seed(0)
        net = wrap(fixtures.small())
        step = make(name).bind(net, torch.optim.SGD(net.parameters(), 0.1))
        step.runtime.outputs_reused = wrap is Overwrites
        torch.manual_seed(1)
        outs = [step(fixtures.batch(k)).logits for k in range(3)]
        ends.append([*outs, *net.parameters()])
    assert all(map(torch.equal, *ends))


def test_a_model_compiled_with_cuda_graphs_is_recognised() -> None:
    net = nn.Linear(2, 2)
    assert not reuses_outputs(net)
    assert not reuses_outputs(torch.compile(net))
    assert reuses_outputs(torch.compile(net, mode="reduce-overhead"))
    assert reuses_outputs(torch.compile(net, mode="max-autotune"))


class CountLaunches(TorchDispatchMode):
    """Count operations other than views and copies, outside of the passes."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.copies, self.within = 0, 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.within and func.name().startswith("aten") and not func.is_view:
            self.copies += "copy" in func.name()
            self.count += "copy" not in func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("plain", 2), ("sam", 10)])
def test_a_step_launches_few_operations_besides_its_passes(name: str, most: int, monkeypatch) -> None:
    _, step = bound(name, on_device=True)
    batches, mode, make_pass = list(map(fixtures.batch, range(13))), CountLaunches(), _operations.make_pass
    for batch in batches[:12]:
        step(batch)
    buffers = step.runtime.buffers
    step.runtime.buffers = Buffers()  # running statistics are copied and restored in operations of their own

    def counted(*args, **kwargs):
        mode.within = True
        out = make_pass(*args, **kwargs)
        mode.within = False
        return out

    monkeypatch.setattr(_operations, "make_pass", counted)
    with mode:
        step(batches[12])
    assert buffers
    assert mode.count <= most
    assert mode.copies <= 2  # the weights are copied and restored


# the loss and the gradient's norm of each pass; MESA's teacher has logits only
@pytest.mark.parametrize(("name", "expected"), [("plain", 2), ("sam", 4), ("rwp", 4), ("mesa", 3), ("sadt-v1", 4)])
def test_a_step_on_a_cpu_checks_every_pass(name: str, expected: int) -> None:
    _, step = bound(name, on_device=False)
    reads(step, 0, 2)
    assert reads(step, 2, 3) == [expected] * 3


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_one_check_per_step_gives_the_bits_of_a_check_per_pass(name: str, fused: bool) -> None:
    ends = []
    for on_device in (True, False):
        net, step = bound(name, on_device=on_device, fused=fused)
        torch.manual_seed(1)
        for k in range(4):
            step(fixtures.batch(k))
        ends.append((net.state_dict(), step.state.state_dict(), dict(vars(step.passes))))
    (net_a, state_a, passes_a), (net_b, state_b, passes_b) = ends
    assert passes_a == passes_b
    assert all(torch.equal(net_a[k], net_b[k]) for k in net_a)
    assert all(torch.equal(state_a[k], state_b[k]) for k in state_a if isinstance(state_a[k], torch.Tensor))


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_step_that_was_not_finite_is_undone_on_the_device(name: str, fused: bool, first: int) -> None:
    net, step = bound(name, on_device=True, fused=fused)
    for k in range(first):
        step(fixtures.batch(k))
    optimizer = step.runtime.optimizer
    before = {k: v.clone() for k, v in net.state_dict().items()}
    momenta = [s["momentum_buffer"].clone() for s in optimizer.state.values()]
    batch = fixtures.batch(2)
    batch.x[3, 0, 0, 0] = float("nan")
    with CountReads() as mode:
        out = step(batch)
    assert (mode.count > 0) == (first == 0)  # what a first update creates must not be left behind
    assert out.skipped
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    now = [s["momentum_buffer"] for s in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, momenta, strict=True))
    assert not step(fixtures.batch(3)).skipped


def test_bind_has_the_options_of_the_one_list_and_documents_each():
    arguments = inspect.signature(Method.bind).parameters.values()
    options = {p.name: p.default for p in arguments if p.kind is p.KEYWORD_ONLY}
    listed = {f.name: f.default for f in fields(BindOptions)}
    assert listed.keys() == options.keys()
    assert listed == options | {"loss": listed["loss"]}
    assert all(f"\n            {name}: " in (Method.bind.__doc__ or "") for name in listed)


@pytest.mark.parametrize("option", [{"m": 0}, {"m": True}, {"m": "all"}, {"m": 2, "sync": "global"}])
def test_an_impossible_m_is_refused(option):
    net = nn.Linear(2, 2)
    with pytest.raises(InputError, match=f"m is {option['m']!r}"):
        make("sam").bind(net, torch.optim.SGD(net.parameters(), 0.1), **option)


def test_contexts_within_each_other_leave_the_outer_one_in_force():
    rt = step_of(Method()).runtime
    with rt.preserve_state():
        with rt.at([torch.ones_like(p) for p in rt.params]):
            pass
        assert rt.untracked
    assert not rt.untracked


@dataclass(frozen=True)
class Repeated(Method):
    """Take the gradient twice, without a path of its own at the limit."""

    rho: ScheduleValue = hyper(0.05, "radius", minimum=0, plain_at=0)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        out, _ = rt.grad(batch)
        with rt.at([torch.full_like(p, rt.setting("rho", self.rho)) for p in rt.params]):
            _, g = rt.grad(batch)
        rt.apply(g)
        return out


@pytest.mark.parametrize(("rho", "passes"), [(0.0, 1), (0.1, 2), (None, 2)])
def test_a_group_that_sets_a_radius_of_0_makes_the_step_plain(rho, passes):
    step = step_of(Repeated())
    if rho is not None:
        step.runtime.optimizer.param_groups[0]["rho"] = rho
    step(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    assert step.passes.backward == passes


@dataclass(frozen=True)
class Counts(Method):
    """Count the calls of ``after``."""

    calls: ClassVar[list[int]] = []

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        self.calls.append(1)


def test_a_skipped_step_does_not_update_the_state():
    step, y = step_of(Counts()), torch.tensor([0, 1])
    assert step(torch.full((2, 3), torch.nan), y).skipped and not Counts.calls
    assert not step(torch.ones(2, 3), y).skipped and len(Counts.calls) == 1


class Writes(torch.optim.SGD):
    """Write into the gradients that it gets."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.zero_()


@dataclass(frozen=True)
class Twice(Method):
    """Update twice with the same gradient, whether at once or one after the other."""

    at_once: bool = False

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        out, g = rt.grad(batch)
        if not self.at_once:
            rt.apply(g, more=True)
        rt.apply(g, times=1 + self.at_once)
        return out


@pytest.mark.parametrize("at_once", [False, True])
def test_an_optimizer_that_writes_into_its_gradients_changes_no_later_update(at_once):
    steps = [step_of(Twice(at_once), optimizer) for optimizer in (Writes, torch.optim.SGD)]
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    for step in steps:
        step(x, y)
    assert all(torch.equal(p, q) for p, q in zip(*(step.runtime.params for step in steps), strict=True))


class Table(nn.Module):
    """Returns its weight as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[: len(x)]


def test_logits_that_are_a_view_of_a_weight_are_those_before_the_update():
    net = Table()
    out = Method().bind(net, torch.optim.SGD(net.parameters(), 1.0))(torch.zeros(3), torch.tensor([0, 1, 2]))
    assert torch.equal(out.logits, torch.eye(4)[:3]) and not torch.equal(net.weight, torch.eye(4))
