"""Splits are disjoint, exact, class by class, and equal for equal seeds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe import InputError
from steppe.config import Data, Run
from steppe.data import load
from steppe.data.dataset import Images, Source
from steppe.data.splits import apply, noisy_labels, shot_groups, stratified
from steppe.training.run import check_augmentation


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


@given(st.lists(st.integers(30, 90), min_size=2, max_size=6), st.floats(1, 25), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_long_tail_falls_exponentially_from_the_first_class_to_the_last(sizes, ratio, seed) -> None:
    plain = apply("x", source(sizes), Data(val=2, split_seed=seed))
    tailed = apply("x", source(sizes), Data(val=2, split_seed=seed, imbalance=ratio))
    n = min(plain.class_counts)
    exact = [n * ratio ** (-c / (len(sizes) - 1)) for c in range(len(sizes))]
    assert all(abs(a - b) < 1 + 1e-6 and a <= b + 1e-6 for a, b in zip(tailed.class_counts, exact, strict=True))
    assert tailed.class_counts[0] == n
    assert numbers(tailed.train) <= numbers(plain.train) and numbers(tailed.val) == numbers(plain.val)
    again = apply("x", source(sizes), Data(val=2, split_seed=seed, imbalance=ratio))
    assert torch.equal(again.train.x, tailed.train.x)


@given(st.floats(0.01, 1), st.integers(0, 3), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_label_noise_replaces_an_exact_share_of_the_training_labels_alone(share, seed, classes) -> None:
    clean = apply("x", source([40] * classes), Data(split_seed=seed))
    noisy = apply("x", source([40] * classes), Data(split_seed=seed, label_noise=share))
    assert torch.equal(noisy.train.x, clean.train.x)
    assert int((noisy.train.y != clean.train.y).sum()) == round(share * len(clean.train))
    assert set(noisy.train.y.tolist()) <= set(range(classes))
    assert torch.equal(noisy.val.y, clean.val.y) and torch.equal(noisy.test.y, clean.test.y)


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_the_sizes_of_classes_are_those_of_right_labels_in_every_split(first, second, noise) -> None:
    """So that the groups of a long-tailed comparison are the same classes for all seeds."""
    options = {"val": 0.2, "imbalance": 8.0}
    clean = apply("x", source([60, 50, 45, 50]), Data(split_seed=first, **options)).class_counts
    noisy = apply("x", source([60, 50, 45, 50]), Data(split_seed=second, label_noise=noise, **options))
    assert noisy.class_counts == clean == tuple(sorted(clean, reverse=True)) and sum(clean) == len(noisy.train)
    assert shot_groups(noisy.class_counts) == {"many": [0, 1], "medium": [2], "few": [3]}


def test_noise_is_symmetric() -> None:
    y = np.repeat(np.arange(5), 20_000)
    noisy = noisy_labels(y, 0.4, 5, np.random.default_rng(0))
    table = np.array([[((y == a) & (noisy == b)).mean() * 5 for b in range(5)] for a in range(5)])
    assert np.allclose(table, np.where(np.eye(5) > 0, 0.6, 0.1), atol=0.01)


def test_classes_are_grouped_by_their_training_samples_or_in_thirds() -> None:
    assert shot_groups([500, 101, 100, 20, 19, 1]) == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    assert shot_groups([9, 1, 5]) == {"many": [0], "medium": [2], "few": [1]}
    assert shot_groups([300, 19]) == {"many": [0], "few": [1]}


def test_a_share_of_the_images_is_a_count_of_them() -> None:
    tenth, count = (apply("x", source([100, 100]), Data(train=t)) for t in (0.1, 20))
    assert len(tenth.train) == 20 and torch.equal(tenth.train.x, count.train.x)
    assert Data(train=20.0) == Data(train=20)
    with pytest.raises(InputError, match="data.train is 20.5; give a share below 1 or a whole number"):
        Data(train=20.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance": 0.5}, "data.imbalance is 0.5; give largest over smallest class|above"),
        (
            {"imbalance": 100},
            "data.imbalance is 100 and the smallest class has 45 training samples; give at most 45",
        ),
        ({"label_noise": 1.5}, "data.label_noise is 1.5; give a share from 0 to 1"),
    ],
)
def test_impossible_tails_and_noise_are_one_line(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply("x", source([50, 50]), Data(**options))


def test_numbers_have_no_classes_to_unbalance() -> None:
    with pytest.raises(InputError, match="data.label_noise is 0.1 and diabetes is a regression; leave it out"):
        load("diabetes", Data(label_noise=0.1))


def test_an_augmentation_is_refused_if_no_data_set_has_images() -> None:
    sets = {name: load(name, Data(augment=("flip",))) for name in ("diabetes", "digits")}
    check_augmentation(Data(augment=("flip",)), sets)
    for augment in (("cutmix",), ()):
        check_augmentation(Data(augment=augment), {"diabetes": sets["diabetes"]})
    with pytest.raises(
        InputError, match="data.augment is flip and diabetes has no images of whole numbers; leave"
    ):
        check_augmentation(Data(augment=("flip",)), {"diabetes": sets["diabetes"]})


@pytest.mark.parametrize("options", [{"noise": 1.0}, {"views": ("plain",)}])
def test_options_of_images_are_refused_for_tables(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="and diabetes has no images of whole numbers; leave it out"):
        load("diabetes", Data(**options))


def test_options_of_later_versions_are_no_part_of_an_older_run_s_name() -> None:
    """The digests of version 0.1, of runs without these options."""
    assert "imbalance" not in Run().as_dict()["data"] and "label_noise" not in Run().as_dict()["data"]
    names = {Run(data=data).digest() for data in (Data(), Data(imbalance=2), Data(label_noise=0.1))}
    assert len(names) == 3
