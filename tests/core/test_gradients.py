"""Gradients that lie with the parameters: none counts that was there before a step, none is left after it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.numerics import vector
from steppe.core.runtime import Runtime, StepOutput
from steppe.methods import make
from steppe.testing import fixtures


def finite(a: vector.Vec, *beside: Tensor) -> Tensor:
    return vector.all_finite(vector.finite_check(a, *beside))


@dataclass(frozen=True)
class OnlyLooks(Method):
    """Take a gradient, and make no update."""

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        out, _ = rt.grad(rt.objective, batch)
        return out


@dataclass(frozen=True)
class Swaps(Method):
    """Update with other gradients than those that were left: the last pass's, negated."""

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        out, g = rt.grad(rt.objective, batch)
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


def test_a_step_without_an_update_leaves_nothing() -> None:
    _, net = after(OnlyLooks(), stale=False)
    assert all(p.grad is None for p in net.parameters())


def test_the_update_is_made_with_what_it_is_given_and_not_with_what_was_left() -> None:
    there, _ = after(make("plain"), stale=False, steps=1)
    back, _ = after(Swaps(), stale=False, steps=1)
    torch.manual_seed(0)
    start = [p.detach() for p in fixtures.small().parameters()]
    assert max((a - s).abs().max().item() for a, s in zip(there, start, strict=True)) > 1e-3
    for a, b, s in zip(there, back, start, strict=True):
        assert torch.allclose(a - s, s - b, rtol=0, atol=1e-6)


def test_a_measured_vector_that_lost_a_tensor_is_measured_anew() -> None:
    tensors = [torch.full((3,), 2.0), torch.full((2, 2), 1.0), torch.full((5,), 3.0)]
    a = vector.Measured(tensors, vector.TensorKind.of(tensors))
    assert bool(finite(a)) and vector.norm(a).item() == pytest.approx((12 + 4 + 45) ** 0.5)
    a[1] = None
    assert bool(finite(a)) and vector.norm(a).item() == pytest.approx((12 + 45) ** 0.5)
    tensors[0][1] = float("nan")
    assert not vector.norm(a).isfinite() and not bool(finite(a))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", range(3))
def test_one_bad_element_anywhere_is_seen(bad: float, where: int) -> None:
    tensors = [torch.randn(3), torch.randn(2, 2), torch.randn(5)]
    assert bool(finite([*tensors], torch.tensor(1.0)))
    assert not bool(finite([*tensors], torch.tensor(bad)))
    tensors[where].view(-1)[-1] = bad
    for a in ([*tensors], vector.Measured(tensors, vector.TensorKind.of(tensors))):
        assert not bool(finite(a))
        assert not bool(finite(a, torch.tensor(-bad)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_to_be_along_a_direction_is_to_be_at_its_multiple(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=g).to(dtype) for s in ((40,), (7, 9))]
    way = [torch.randn(t.shape, generator=g).to(dtype) for t in start]
    times = torch.tensor(0.37, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    moved = [t.clone() for t in start]
    vector.move(moved, way, times)
    for m, s, w in zip(moved, start, way, strict=True):
        exact = s.double() + w.double() * times.double()
        assert (m.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()
