"""Vectors in parameter space against plain arithmetic on one long tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec

shapes = st.lists(st.sampled_from([(3,), (2, 3), (1, 2, 2), ()]), min_size=1, max_size=4)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Vec, Vec]:
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    both: list[Vec] = [[], []]
    for shape in draw(shapes):
        for side in both:
            present = draw(st.booleans())
            side.append(torch.randn(shape, generator=g, dtype=torch.float64) if present else None)
    return both[0], both[1]


def long(a: Vec, like: Vec) -> Tensor:
    """Write a vector out, None as zeros."""
    parts = []
    for s, t in zip(a, like, strict=True):
        shape = s if s is not None else t
        if shape is not None:
            parts.append((s if s is not None else torch.zeros_like(shape)).reshape(-1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


@given(pairs(), st.floats(-3, 3))
def test_arithmetic_is_that_of_one_long_vector_with_none_as_zero(pair, by):
    a, b = pair
    x, y = long(a, b), long(b, a)
    assert torch.allclose(
        long(vector.add(a, b, by=by), a), long(a, vector.add(a, b)) + by * long(b, vector.add(a, b))
    )
    assert torch.allclose(vector.norm(a).double(), long(a, a).norm())
    assert torch.allclose(vector.dot(a, b).double(), x @ y if len(x) else torch.zeros((), dtype=torch.float64))
    assert torch.allclose(long(vector.scale(a, by), a), by * long(a, a))


@given(pairs())
def test_results_never_share_storage_with_scaled_or_summed_arguments(pair):
    a, b = pair
    before = vector.clone(a)
    for out in (vector.scale(a, 2.0), vector.clone(a)):
        for t in out:
            if t is not None:
                t.add_(1)
    summed = vector.add(a, b)
    for t, p, q in zip(summed, a, b, strict=True):
        if p is not None and q is not None and t is not None:
            t.add_(1)
    for t, s in zip(a, before, strict=True):
        assert (t is None and s is None) or torch.equal(t, s)


def test_half_precision_norms_accumulate_in_float32():
    a: Vec = [torch.full((70_000,), 1.0, dtype=torch.float16)]
    assert vector.norm(a).item() == pytest.approx(70_000**0.5, rel=1e-4)


def test_noise_comes_from_its_generator_alone_and_only_where_asked():
    like = [torch.zeros(4), torch.zeros(2, 2)]
    before = torch.get_rng_state()
    noise = vector.gaussian(like, torch.Generator().manual_seed(3), [True, False])
    assert noise[1] is None
    assert torch.equal(noise[0], torch.randn(4, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(before, torch.get_rng_state())


def test_gathering_adds_into_the_storage_of_its_arguments():
    total, a = [torch.ones(2), None, torch.ones(1), None], [torch.ones(2), torch.full((1,), 4.0), None, None]
    storage = total[0], a[1], total[2]
    gathered = vector.gather(total, a, 0.5)
    assert [None if t is None else t.tolist() for t in gathered] == [[1.5, 1.5], [2.0], [1.0], None]
    assert all(t is s for t, s in zip(gathered, storage, strict=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per_unit", [False, True])
def test_moving_along_a_scaled_vector_adds_its_product(dtype: torch.dtype, per_unit: bool):
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, 2, generator=g).to(dtype), torch.randn(5, generator=g).to(dtype), torch.ones(2)]
    direction = [torch.randn(t.shape, generator=g).to(t.dtype) for t in start[:2]]
    times = torch.tensor(0.37, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    factors = [torch.rand(4, 1, 1, generator=g).to(dtype), torch.tensor(0.25, dtype=dtype)]
    scaled = vector.ScaledVector([*direction, None], [*factors, None] if per_unit else times)
    moved = [t.clone() for t in start]
    vector.move(moved[:2], direction, factors if per_unit else times)
    assert scaled.vector()[2] is None and torch.equal(moved[2], start[2])
    for m, s, d, f, v in zip(
        moved[:2], start[:2], direction, factors if per_unit else [times] * 2, scaled.vector()[:2], strict=True
    ):
        exact = s.double() + d.double() * f.double()
        assert (m.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()
        assert torch.allclose((s + v).double(), exact, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6)


def finite(a: Vec) -> bool:
    return bool(vector.all_finite(vector.finite_check(a)))


def test_a_measured_vector_that_lost_a_tensor_is_measured_anew():
    tensors = [torch.full((3,), 2.0), torch.full((2, 2), 1.0), torch.full((5,), 3.0)]
    a = vector.Measured(tensors)
    assert finite(a) and vector.norm(a).item() == pytest.approx((12 + 4 + 45) ** 0.5)
    a[1] = None
    assert finite(a) and vector.norm(a).item() == pytest.approx((12 + 45) ** 0.5)
    tensors[0][1] = float("nan")
    assert not vector.norm(a).isfinite() and not finite(a)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", range(3))
def test_the_check_finds_one_bad_element_anywhere(bad: float, where: int):
    tensors = [torch.randn(3), torch.randn(2, 2), torch.randn(5)]
    assert finite([*tensors])
    tensors[where].view(-1)[-1] = bad
    for a in ([*tensors], vector.Measured(tensors)):
        assert not finite(a)


def test_noise_is_that_of_randn_whatever_the_layout() -> None:
    torch.manual_seed(0)
    like = [
        nn.Parameter(torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.zeros(7)),
        torch.zeros(40, 20).t(),
        torch.zeros((), dtype=torch.float64),
        torch.zeros(5, 6, dtype=torch.bfloat16),
    ]
    where = [True, True, True, False, True]
    noise = vector.gaussian(like, torch.Generator().manual_seed(3), where)
    scaled = vector.gaussian(like, torch.Generator().manual_seed(3), where, sigma=0.1)
    reference = torch.Generator().manual_seed(3)
    for t, w, n, s in zip(like, where, noise, scaled, strict=True):
        if not w:
            assert n is None and s is None
            continue
        expected = torch.randn(t.shape, generator=reference, dtype=t.dtype)
        assert n is not None and s is not None and not n.requires_grad
        assert torch.equal(n, expected) and n.dtype == t.dtype
        assert torch.allclose(s, 0.1 * expected, rtol=2 * torch.finfo(t.dtype).eps, atol=0)
