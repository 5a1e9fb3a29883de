"""Splits are disjoint, exact, class by class, and equal for equal seeds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steppe import InputError
from steppe.config import Data
from steppe.data.dataset import Images, Source
from steppe.data.splits import apply, stratified


def source(per_class: list[int], test: int = 10) -> Source:
    y = np.repeat(np.arange(len(per_class)), per_class)
    # every image encodes its number, so that two parts can be compared
    x = torch.arange(len(y)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    numbers = torch.cat([x % 256, x // 256], 1).to(torch.uint8)
    test_y = torch.arange(test) % len(per_class)
    return Source(
        Images(numbers, torch.from_numpy(y)),
        Images(torch.zeros(test, 2, 2, 2, dtype=torch.uint8), test_y),
        tuple(map(str, range(len(per_class)))),
    )


def numbers(images: Images) -> set[int]:
    return {int(a) + 256 * int(b) for a, b in images.x[:, :, 0, 0]}


@given(st.lists(st.integers(5, 60), min_size=2, max_size=5), st.integers(0, 5), st.floats(0.05, 0.4))
def test_parts_are_disjoint_and_nothing_is_lost(sizes: list[int], seed: int, val: float) -> None:
    data = apply("x", source(sizes), Data(val=val, split_seed=seed))
    assert not numbers(data.train) & numbers(data.val)
    assert len(data.train) + len(data.val) == sum(sizes)
    assert len(data.val) == max(1, round(val * sum(sizes)))


@given(st.integers(1, 60), st.integers(0, 9))
def test_classes_keep_their_proportions_as_well_as_whole_numbers_allow(count: int, seed: int) -> None:
    y = np.repeat([0, 1, 2], [10, 20, 30])
    picked = stratified(y, count, np.random.default_rng(seed))
    assert len(set(picked)) == count
    for label, size in enumerate([10, 20, 30]):
        assert abs((y[picked] == label).sum() - count * size / 60) < 1


def test_a_training_subset_is_exact_and_validation_images_depend_on_the_seed_alone() -> None:
    data = apply("x", source([100, 100]), Data(train=50, val=0.1))
    assert (len(data.train), len(data.val)) == (50, 5)
    assert torch.equal(data.train.y.bincount(), torch.tensor([25, 25]))
    assert not numbers(data.train) & numbers(data.val)
    few = apply("x", source([100, 100]), Data(train=50, val=10))
    many = apply("x", source([100, 100]), Data(train=150, val=10))
    assert numbers(few.val) == numbers(many.val)
    one, same, other = (apply("x", source([50, 50]), Data(split_seed=s)) for s in (1, 1, 2))
    assert torch.equal(one.train.x, same.train.x)
    assert numbers(one.val) != numbers(other.val)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Data(train=200), r"data.train 200 and data.val 0.1 \(20 images\) need more than the 100"),
        (Data(train=95, val=10), "data.train 95 and data.val 10 .* more than the 100"),
        (Data(val=100), "^data.val 100 .* more than the 100"),
        (Data(split_seed=-1), "data.split_seed is -1; give 0 or"),
        (Data(test=11), "data.test is 11; x has 10 test images"),
        (Data(train=1), "has no training image; raise data.train"),
    ],
)
def test_impossible_splits_are_one_line(options: Data, message: str) -> None:
    options = options if options.train != 1 else Data(train=1, val=5)
    with pytest.raises(InputError, match=message):
        apply("x", source([50, 50]), options)
