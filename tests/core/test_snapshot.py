"""Copies return bit for bit into the storage they were taken from, wherever that lies by then."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from steppe.core.param_groups import Trainable
from steppe.core.snapshot import CopyPool, TensorCopy

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.int16]


def laid(kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a tensor of some layout; its storage, where it is larger, is the tensor's base."""
    g = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 2**15, (4, 3, 5, 2), generator=g).to(dtype)
    return {
        "contiguous": lambda: whole,
        "channels_last": lambda: whole.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: whole[:, 0, 0].clone().t(),
        "vector": lambda: whole.flatten(),
        "every second": lambda: whole.flatten()[::2],
        "a part": lambda: whole[1:3],
        "number": lambda: whole[0, 0, 0, 0].clone(),
        "empty": lambda: whole[:0],
        "one wide": lambda: whole[:, :1].clone().expand(4, 1, 5, 2),
    }[kind]()


KINDS = [
    *("contiguous", "channels_last", "transposed", "vector", "every second"),
    *("a part", "number", "empty", "one wide"),
]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(DTYPES)), max_size=6), st.integers(0, 99))
def test_what_was_copied_comes_back_into_its_storage(drawn: list[tuple[str, torch.dtype]], seed: int) -> None:
    tensors = [laid(kind, dtype, seed + i) for i, (kind, dtype) in enumerate(drawn)]
    places = [t.data_ptr() for t in tensors]
    copies = CopyPool()
    first = [t.clone() for t in tensors]
    held = copies.make(tensors)
    for t in tensors:
        t.zero_()
    second = [t.clone() for t in tensors]
    inner = copies.make(tensors)
    for t in tensors:
        t.fill_(1)
    for copy, expected in ((inner, second), (held, first)):
        copy.restore()
        copies.release(copy)
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    assert [t.data_ptr() for t in tensors] == places


def test_bits_that_compare_unequal_or_alike_come_back_too() -> None:
    patterns = torch.tensor([0x7FC00001, -0x00400000, -(2**31), 1, 0x7F800000], dtype=torch.int32)
    weights = nn.Parameter(patterns.view(torch.float32).clone())
    copies = CopyPool()
    held = copies.make([weights])
    weights.data.zero_()
    held.restore()
    assert torch.equal(weights.data.view(torch.int32), patterns)


def weights_of(copy: TensorCopy) -> list[int]:
    return [long.data_ptr() for long in copy._long]


def test_the_storage_of_a_copy_is_used_again() -> None:
    tensors = [torch.randn(3), torch.randn(2, 2)]
    copies = CopyPool()
    held = copies.make(tensors)
    where = weights_of(held)
    copies.release(held)
    tensors[0].add_(1)
    again = copies.make(tensors)
    assert weights_of(again) == where
    assert weights_of(copies.make(tensors)) != where
    expected = [t.clone() for t in tensors]
    tensors[1].zero_()
    again.restore()
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


EXCHANGES = {
    "elsewhere": lambda p: p.data.clone(),
    "wider": lambda p: p.data.double(),
    "another layout": lambda p: p.data.clone().contiguous(memory_format=torch.channels_last),
    "smaller": lambda p: p.data[:1],
}


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (6,)])
@pytest.mark.parametrize("how", EXCHANGES)
def test_data_that_was_exchanged_is_copied_where_it_lies_now(how: str, shape: tuple[int, ...]) -> None:
    if how == "another layout" and len(shape) < 4:
        pytest.skip("a vector has one layout")
    p, other = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(2, 2))
    copies = CopyPool()
    copies.release(copies.make([p, other]))
    p.data = EXCHANGES[how](p) + 1e-12
    expected = p.detach().clone()
    held = copies.make([p, other])
    p.data.zero_()
    held.restore()
    assert p.dtype == expected.dtype
    assert torch.equal(p, expected)


@pytest.mark.parametrize("how", ["elsewhere", "wider", "another layout"])
def test_data_that_was_exchanged_meanwhile_gets_its_values_back(how: str) -> None:
    p = nn.Parameter(torch.randn(4, 3, 2, 2))
    expected = p.detach().clone()
    held = CopyPool().make([p])
    p.data = EXCHANGES[how](p) + 1
    where = p.data_ptr()
    held.restore()
    assert p.data_ptr() == where
    assert torch.equal(p, expected.to(p.dtype))


def test_a_part_that_grew_in_its_own_storage_is_noticed() -> None:
    whole = torch.randn(6, 2)
    p = nn.Parameter(torch.zeros(0))
    p.data = whole[:2]
    copies = CopyPool()
    copies.release(copies.make([p]))
    p.data = whole
    expected = whole.clone()
    held = copies.make([p])
    p.data.zero_()
    held.restore()
    assert torch.equal(whole, expected)


def test_a_change_of_what_is_trained_is_noticed() -> None:
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a, b]}, {"params": [c]}], 0.1)
    trained = Trainable(optimizer)
    assert not trained.renew()
    b.requires_grad_(False)
    assert trained.renew() and [id(p) for p in trained.params] == [id(a), id(c)]
    b.requires_grad_(True)
    d = nn.Parameter(torch.zeros(1))
    optimizer.param_groups[1]["params"][0] = d
    assert trained.renew() and [id(p) for p in trained.params] == [id(a), id(b), id(d)]
    assert not trained.renew()
