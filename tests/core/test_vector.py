"""Vectors in parameter space against plain arithmetic on one long tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec

shapes = st.lists(st.sampled_from([(3,), (2, 3), (1, 2, 2), ()]), min_size=1, max_size=4)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Vec, Vec]:
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    both: list[Vec] = [[], []]
    for shape in draw(shapes):
        for side in both:
            there = draw(st.booleans())
            side.append(torch.randn(shape, generator=g, dtype=torch.float64) if there else None)
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


def test_gathering_adds_in_the_storage_that_it_is_given():
    total, a = [torch.ones(2), None, torch.ones(1), None], [torch.ones(2), torch.full((1,), 4.0), None, None]
    held = total[0], a[1], total[2]
    found = vector.gather(total, a, 0.5)
    assert [None if t is None else t.tolist() for t in found] == [[1.5, 1.5], [2.0], [1.0], None]
    assert all(t is h for t, h in zip(found, held, strict=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_direction_with_a_factor_for_each_unit_moves_as_if_multiplied_out(dtype):
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, 2, generator=g).to(dtype), torch.randn(5, generator=g).to(dtype), torch.ones(2)]
    way = [torch.randn(t.shape, generator=g).to(t.dtype) for t in start[:2]]
    times = [torch.rand(4, 1, 1, generator=g).to(dtype), torch.tensor(0.25, dtype=dtype)]
    along = vector.ScaledVector([*way, None], [*times, None])
    here = [t.clone() for t in start]
    vector.move(here[:2], way, times)
    there = [t if o is None else t + o for t, o in zip(start, along.vector(), strict=True)]
    assert along.vector()[2] is None
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(a, b, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.allclose(here[0].double(), (start[0].double() + way[0].double() * times[0].double()), atol=2e-2)
