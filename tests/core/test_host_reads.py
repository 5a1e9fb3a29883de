"""What a step asks the device for: every such question makes the processor wait for a GPU.

They are counted on the processor, where a question is the operation that turns a tensor into a number. A process
alone on a GPU does what is done here with ``decides`` off.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from steppe.core.method import Method
from steppe.core.step import Step
from steppe.methods import METHODS, make
from steppe.testing import fixtures

# What a tensor's values are needed for on the host, so that its work waits for the device's.
ASKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}

# Beyond the one question whether the step was finite: ESAM's number of sharp samples, SAF's table of outputs in
# the host's memory, KDCL's weights of the teachers.
MORE = {"esam": 1, "saf": 3, "kdcl": 2}
# Seeds of fresh dropout masks, which are drawn on the host.
SEEDS = {"two-step": 1, "sadt-v1": 1, "sadt-v2": 1, "sadt-v3": 1}


class Asked(TorchDispatchMode):
    """Counts the questions within."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ASKS
        return func(*args, **(kwargs or {}))


def bound(method: Method, *, decides: bool) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    net = method.build(fixtures.small)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=True)
    step = method.bind(net, optimizer, steps=100, epoch=5)
    method.allocate(step.state, 100, 5)
    step.runtime.parallel.checks_every_pass = decides
    return net, step


def asked(step: Step, first: int, count: int) -> list[int]:
    found = []
    for k in range(first, first + count):
        batch = fixtures.batch(k)
        with Asked() as questions:
            step(batch)
        found.append(questions.count)
    return found


def test_the_count_counts() -> None:
    t = torch.ones(3)
    with Asked() as questions:
        float(t.sum())
        bool(t[0])
        t + t
    assert questions.count == 2


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_gpu_asks_once_whether_it_was_finite(name: str) -> None:
    _, step = bound(make(name), decides=False)
    asked(step, 0, 2)
    assert asked(step, 2, 6) == [1 + MORE.get(name, 0) + SEEDS.get(name, 0)] * 6


@pytest.mark.parametrize(("name", "expected"), [("plain", 1), ("sam", 2), ("rwp", 2), ("mesa", 1), ("sadt-v1", 2)])
def test_a_step_on_a_processor_asks_after_every_pass(name: str, expected: int) -> None:
    _, step = bound(make(name), decides=True)
    asked(step, 0, 2)
    assert asked(step, 2, 3) == [expected + SEEDS.get(name, 0)] * 3


@pytest.mark.parametrize("name", METHODS)
def test_asking_once_gives_the_bits_of_asking_often(name: str) -> None:
    ends = []
    for decides in (True, False):
        net, step = bound(make(name), decides=decides)
        torch.manual_seed(1)
        for k in range(4):
            step(fixtures.batch(k))
        ends.append((net.state_dict(), step.state.state_dict(), dict(vars(step.passes))))
    (net_a, state_a, passes_a), (net_b, state_b, passes_b) = ends
    assert passes_a == passes_b
    assert all(torch.equal(net_a[k], net_b[k]) for k in net_a)
    assert all(torch.equal(state_a[k], state_b[k]) for k in state_a if isinstance(state_a[k], torch.Tensor))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_was_not_finite_leaves_nothing_though_it_was_asked_late(name: str) -> None:
    net, step = bound(make(name), decides=False)
    for k in range(2):
        step(fixtures.batch(k))
    optimizer = step.runtime.optimizer
    before = {k: v.clone() for k, v in net.state_dict().items()}
    momenta = [s["momentum_buffer"].clone() for s in optimizer.state.values()]
    batch = fixtures.batch(2)
    batch.x[3, 0, 0, 0] = float("nan")
    assert step(batch).skipped
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    now = [s["momentum_buffer"] for s in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, momenta, strict=True))
    assert not step(fixtures.batch(3)).skipped
