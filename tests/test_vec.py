"""Vectors in parameter space against plain arithmetic on one long tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steppe import vec
from steppe.vec import Vec

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
    assert torch.allclose(long(vec.add(a, b, by=by), a), long(a, vec.add(a, b)) + by * long(b, vec.add(a, b)))
    assert torch.allclose(vec.norm(a).double(), long(a, a).norm())
    assert torch.allclose(vec.dot(a, b).double(), x @ y if len(x) else torch.zeros((), dtype=torch.float64))
    assert torch.allclose(long(vec.scale(a, by), a), by * long(a, a))


@given(pairs())
def test_results_never_share_storage_with_scaled_or_summed_arguments(pair):
    a, b = pair
    before = vec.clone(a)
    for out in (vec.scale(a, 2.0), vec.clone(a)):
        for t in out:
            if t is not None:
                t.add_(1)
    summed = vec.add(a, b)
    for t, p, q in zip(summed, a, b, strict=True):
        if p is not None and q is not None and t is not None:
            t.add_(1)
    for t, s in zip(a, before, strict=True):
        assert (t is None and s is None) or torch.equal(t, s)


def test_half_precision_norms_accumulate_in_float32():
    a: Vec = [torch.full((70_000,), 1.0, dtype=torch.float16)]
    assert vec.norm(a).item() == pytest.approx(70_000**0.5, rel=1e-4)


def test_noise_comes_from_its_generator_alone_and_only_where_asked():
    like = [torch.zeros(4), torch.zeros(2, 2)]
    before = torch.get_rng_state()
    noise = vec.gaussian(like, torch.Generator().manual_seed(3), [True, False])
    assert noise[1] is None
    assert torch.equal(noise[0], torch.randn(4, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(before, torch.get_rng_state())


def test_stretching_is_multiplying_in_place():
    a, by = [torch.tensor([1.0, 2.0]), None, torch.tensor(3.0)], [torch.tensor([2.0]), torch.ones(2), None]
    held = a[0]
    found = vec.stretch(a, by)
    assert found[0] is held and found[0].tolist() == [2.0, 4.0]
    assert found[1:] == [None, None]
