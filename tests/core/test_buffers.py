"""Buffers come back whether a module writes into them or puts new tensors in their places."""

from __future__ import annotations

import pytest
import torch
from steppe.core.buffers import Buffers
from torch import Tensor, nn

import steppe
from steppe.integrations.torch_optimizer import MethodOptimizer


class Assigning(nn.Module):
    """Keeps its statistics as many modules do that are not PyTorch's: by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.seen = self.seen + 1
        return x - self.mean


class Growing(nn.Module):
    """Has a table as long as the longest batch so far, and remembers how long that is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(0))
        self.length = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.length:
            self.table, self.length = torch.arange(float(len(x))), len(x)
        return x + self.table[: len(x), None]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), Assigning(), nn.Linear(3, 2))


def data(n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g), torch.arange(n) % 2


def statistics_of_one_plain_pass() -> tuple[Tensor, int]:
    net = network()
    net(data()[0])
    return net[1].mean, int(net[1].seen)


METHODS = ["sam:rho=0.5", "gsam:rho=0.5", "rwp:gamma=0.5", "sadt-v1", "mesa"]


@pytest.mark.parametrize("spec", METHODS)
def test_what_a_pass_elsewhere_assigned_is_taken_back(spec: str) -> None:
    net = network()
    step = steppe.methods.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    mean, seen = statistics_of_one_plain_pass()
    step(*data())
    assert torch.equal(net[1].mean, mean) and int(net[1].seen) == seen
    step(*data())
    assert int(net[1].seen) == seen + 1


def test_a_step_that_was_not_finite_leaves_no_assignment() -> None:
    net = network()
    step = steppe.SAM(rho=0.5).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    step(*data())
    mean, seen = net[1].mean.clone(), int(net[1].seen)
    x, y = data()
    x[0, 0] = float("nan")
    assert step(x, y).skipped
    assert torch.equal(net[1].mean, mean) and int(net[1].seen) == seen


@pytest.mark.parametrize("closure", [True, False])
def test_a_method_as_an_optimizer_takes_assignments_back(closure: bool) -> None:
    net = network()
    optimizer = MethodOptimizer(steppe.SAM(rho=0.5), torch.optim.SGD(net.parameters(), 0.1), net)
    (x, y), (mean, seen) = data(), statistics_of_one_plain_pass()

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    if closure:
        optimizer.step(run)
    else:
        run()
        optimizer.first_step()
        run()
        optimizer.second_step()
    assert torch.equal(net[1].mean, mean) and int(net[1].seen) == seen


def test_a_table_that_has_grown_stays() -> None:
    net = nn.Sequential(Growing())
    buffers = Buffers(net)
    kept = buffers.keep()
    net(torch.zeros(5, 1))
    kept.restore()
    kept.close()
    assert len(net[0].table) == 5
    kept = buffers.keep()
    net(torch.zeros(7, 1))
    kept.restore()
    assert torch.equal(net[0].table, torch.arange(7.0))


def test_values_and_places_are_kept_apart_from_what_follows() -> None:
    net = network()
    buffers = Buffers(net)
    kept, mean = buffers.keep(), net[1].mean
    net(data()[0])
    inner, moved = buffers.keep(), net[1].mean
    value = moved.clone()
    moved += 1
    inner.restore()
    inner.close()
    assert net[1].mean is moved and torch.equal(moved, value) and bool((value != 0).any())
    kept.restore()
    assert net[1].mean is mean and torch.equal(mean, torch.zeros(3)) and int(net[1].seen) == 0
