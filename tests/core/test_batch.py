"""Batches: what is split and taken stays together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steppe import Batch


def numbered(count: int) -> Batch:
    i = torch.arange(count)
    return Batch(i.float()[:, None], i % 3, i, {"clean": i[:, None] * 2})


@given(st.integers(1, 20), st.integers(1, 25))
def test_split_then_join_is_the_batch(count, size):
    batch = numbered(count)
    parts = list(batch.split(size))
    assert max(map(len, parts)) <= size
    for pick in (lambda b: b.x, lambda b: b.y, lambda b: b.index, lambda b: b.extra["clean"]):
        assert torch.equal(torch.cat([pick(p) for p in parts]), pick(batch))


@given(st.integers(2, 20))
def test_halves_are_the_batch_and_rows_stay_together(count):
    first, second = numbered(count).halves()
    assert len(first) - len(second) in (0, 1)
    for half in (first, second):
        assert torch.equal(half.x[:, 0], half.index.float())
        assert torch.equal(half.extra["clean"][:, 0], half.index * 2)


def test_a_split_into_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        list(numbered(3).split(0))
