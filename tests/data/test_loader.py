"""Training batches: a pure function of seed and epoch; CutMix and the others against slow references."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steppe import InputError
from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.loader import Loader, Normalizer, evaluation_batches
from steppe.data.transforms.basic import Sample, crop, cutmix, cutout, flip, mixup
from steppe.data.transforms.registry import STEPS


def images(count: int = 23, size: int = 8, channels: int = 3) -> Images:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, channels, size, size), generator=g, dtype=torch.uint8)
    return Images(x, torch.arange(count) % 4)


def loader(augment: tuple[str, ...] = (), batch: int = 5, count: int = 23, seed: int = 0) -> Loader:
    held = images(count)
    return Loader(held, classes=4, batch=batch, augment=augment, normalize=Normalizer.of("unit", held), seed=seed)


def sample(count: int = 40, size: int = 8) -> Sample:
    g = torch.Generator().manual_seed(1)
    y = torch.nn.functional.one_hot(torch.randint(0, 4, (count,), generator=g), 4).float()
    return Sample(torch.rand(count, 3, size, size, generator=g), y)


def partner(count: int = 40, size: int = 8) -> Sample:
    own = sample(count, size)
    return Sample(own.x.flip(0) + 2, own.y.flip(0))


def index_of(batch: Batch) -> Tensor:
    assert batch.index is not None
    return batch.index


def numpy_state() -> bytes:
    return pickle.dumps(np.random.get_state())


@pytest.mark.parametrize("augment", [(), ("flip", "crop", "cutout", "cutmix"), ("mixup",)])
def test_an_epoch_asked_for_twice_gives_the_same_bits_and_needs_no_history(augment: tuple[str, ...]) -> None:
    fresh, used = loader(augment), loader(augment)
    for number in (1, 2):
        list(used.epoch(number))
    for a, b in zip(fresh.epoch(3), used.epoch(3), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(index_of(a), index_of(b))


def test_every_image_comes_once_an_epoch_with_its_own_label_and_index() -> None:
    held = images()
    batches = list(loader().epoch(1))
    index = torch.cat([index_of(b) for b in batches])
    assert sorted(index.tolist()) == list(range(23))
    assert torch.equal(torch.cat([b.y for b in batches]), held.y[index])
    assert torch.equal(torch.cat([b.x for b in batches]), held.x[index].float() / 255)


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = [torch.cat([index_of(b) for b in loader(seed=s).epoch(e)]) for s, e in ((0, 1), (0, 2), (1, 1))]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize(("count", "lengths"), [(20, [5] * 4), (22, [5] * 4 + [2]), (21, [5] * 4)])
def test_a_last_batch_is_kept_unless_it_is_a_single_image(count: int, lengths: list[int]) -> None:
    one = loader(count=count)
    assert [len(b) for b in one.epoch(1)] == lengths
    assert len(one) == len(lengths)


def test_augmentation_never_touches_the_global_streams() -> None:
    before, numpy_before = torch.get_rng_state(), numpy_state()
    list(loader(("flip", "crop", "cutout", "cutmix")).epoch(1))
    assert torch.equal(before, torch.get_rng_state())
    assert numpy_before == numpy_state()


def test_the_partner_comes_from_the_whole_set_not_from_the_batch() -> None:
    """With mixup, labels of classes that the batch does not hold appear."""
    held = images(40)
    one = Loader(held, classes=4, batch=2, augment=("mixup",), normalize=Normalizer.of("unit", held), seed=0)
    foreign = [
        not set(torch.nonzero(b.y.sum(0)).flatten().tolist()) <= set(held.y[index_of(b)].tolist())
        for b in one.epoch(1)
    ]
    assert any(foreign)


def cutmix_reference(own: Sample, other: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The notebook's CutMix, one image at a time, with loops over pixels."""
    x, y = own.x.numpy().copy(), own.y.numpy().copy()
    count, _, size, _ = x.shape
    lam = np.asarray(rng.beta(0.25, 0.25, count))
    rows, columns = (np.asarray(rng.integers(0, size, count)) for _ in range(2))
    for i in range(count):
        side = math.floor(size * math.sqrt(1 - lam[i]))
        top, left = max(rows[i] - side // 2, 0), max(columns[i] - side // 2, 0)
        height = min(rows[i] + side // 2, size) - top or 1
        width = min(columns[i] + side // 2, size) - left or 1
        for r in range(top, top + height):
            for c in range(left, left + width):
                x[i, :, r, c] = other.x.numpy()[i, :, r, c]
        share = 1 - height * width / size**2
        y[i] = share * y[i] + (1 - share) * other.y.numpy()[i]
    return x, y


@pytest.mark.parametrize("size", [8, 13, 32])
def test_cutmix_is_that_of_the_notebook(size: int) -> None:
    own, other = sample(size=size), partner(size=size)
    got = cutmix(own, other, np.random.default_rng(5))
    x, y = cutmix_reference(own, other, np.random.default_rng(5))
    assert np.array_equal(got.x.numpy(), x)
    assert np.allclose(got.y.numpy(), y, atol=1e-6)
    assert (got.x > 1.5).any(dim=(1, 2, 3)).all()  # a box of at least one pixel in every image


@given(st.integers(0, 500))
def test_labels_stay_probabilities_and_count_the_pixels(seed: int) -> None:
    own, other = sample(), partner()
    got = cutmix(own, other, np.random.default_rng(seed))
    assert torch.allclose(got.y.sum(1), torch.ones(40))
    share = (got.x[:, 0] <= 1.5).float().mean(dim=(1, 2))  # the partner's pixels are above 1.5
    assert torch.allclose(got.y, share[:, None] * own.y + (1 - share[:, None]) * other.y, atol=1e-6)
    mixed = mixup(own, other, np.random.default_rng(seed))
    assert torch.allclose(mixed.y.sum(1), torch.ones(40))
    assert bool((mixed.x >= torch.minimum(own.x, other.x) - 1e-6).all())


@given(st.integers(0, 500))
def test_flip_mirrors_some_images_and_leaves_the_others(seed: int) -> None:
    own = sample()
    got = flip(own, own, np.random.default_rng(seed)).x
    same = (got == own.x).all(dim=(1, 2, 3))
    mirrored = (got == own.x.flip(3)).all(dim=(1, 2, 3))
    assert bool((same ^ mirrored).all())
    assert 4 < int(mirrored.sum()) < 36


@given(st.integers(0, 500))
def test_crop_is_a_shift_by_at_most_an_eighth_with_zeros_coming_in(seed: int) -> None:
    own = sample(count=6, size=16)
    got = crop(own, own, np.random.default_rng(seed)).x
    for before, after in zip(own.x, got, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        shifts = [padded[:, r : r + 16, c : c + 16] for r in range(5) for c in range(5)]
        assert sum(torch.equal(after, s) for s in shifts) == 1


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 24)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_takes_the_rows_and_columns_that_it_draws(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, pad = torch.Generator().manual_seed(0), shape[1] // 8
    own = Sample(torch.randint(1, 256, (40, *shape), generator=g).to(dtype), torch.zeros(40, 4))
    drawn = np.random.default_rng(3)
    top, left = (drawn.integers(0, 2 * pad + 1, 40) for _ in range(2))
    assert (top != left).any()
    for before, after, r, c in zip(own.x, crop(own, own, np.random.default_rng(3)).x, top, left, strict=True):
        padded = np.pad(before.numpy(), ((0, 0), (pad, pad), (pad, pad)))
        assert np.array_equal(after.numpy(), padded[:, r : r + shape[1], c : c + shape[2]])


@given(st.integers(0, 500))
def test_cutout_blanks_one_square_of_at_most_half_the_side(seed: int) -> None:
    own = Sample(torch.ones(20, 3, 16, 16), torch.zeros(20, 4))
    hole = cutout(own, own, np.random.default_rng(seed)).x[:, 0] == 0
    for h in hole:
        rows, columns = h.any(1).nonzero().flatten(), h.any(0).nonzero().flatten()
        assert int(h.sum()) == len(rows) * len(columns)
        assert max(len(rows), len(columns)) <= 8
    assert 0 < int(hole.any(dim=(1, 2)).sum()) < 20


def test_standard_normalisation_gives_training_images_mean_zero_and_deviation_one() -> None:
    held = images(50)
    x = torch.cat([b.x for b in evaluation_batches(held, 7, Normalizer.of("standard", held))]).double()
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(x.var(dim=(0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize(
    ("augment", "batch", "message"),
    [
        (("cutmixx",), 5, "unknown augmentation in data.augment 'cutmixx'; did you mean 'cutmix'"),
        (("mixup", "cutmix"), 5, "both mixup and cutmix"),
        ((), 24, "batch is 24 and only 23 images"),
    ],
)
def test_impossible_batches_are_one_line(augment: tuple[str, ...], batch: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader(augment, batch)


def test_every_step_is_named() -> None:
    named = ["flip", "crop", "resized-crop", "jitter", "cutout", "rotate", "randaugment", "mixup", "cutmix"]
    assert list(STEPS) == named


def test_crop_pads_with_black_and_cutout_blanks_to_zero_after_standardisation() -> None:
    """On white images the border is black and standardised; the cut square is exactly zero."""
    x = torch.full((64, 1, 16, 16), 255, dtype=torch.uint8)
    white = Images(x, torch.arange(64) % 2)
    norm = Normalizer((0.5,), (0.25,))
    values = {}
    for step in ("crop", "cutout"):
        one = Loader(white, classes=2, batch=64, augment=(step,), normalize=norm, seed=0)
        values[step] = set(next(one.epoch(0)).x.flatten().tolist())
    assert values == {"crop": {-2.0, 2.0}, "cutout": {0.0, 2.0}}


@pytest.mark.parametrize("augment", [(), ("flip", "crop", "cutout", "cutmix"), ("mixup",)])
def test_batches_are_plain_contiguous_float32_with_fitting_labels(augment: tuple[str, ...]) -> None:
    batch = next(loader(augment).epoch(0))
    assert batch.x.is_contiguous() and batch.x.dtype == torch.float32
    mixed = "cutmix" in augment or "mixup" in augment
    assert (batch.y.shape, batch.y.dtype) == (((5, 4), torch.float32) if mixed else ((5,), torch.int64))


def test_the_uint8_images_are_never_changed() -> None:
    held = images()
    before = held.x.clone()
    norm = Normalizer.of("standard", held)
    one = Loader(held, classes=4, batch=5, augment=("flip", "cutout", "mixup"), normalize=norm, seed=0)
    list(one.epoch(0))
    list(evaluation_batches(held, 5, norm))
    assert torch.equal(held.x, before)


def test_a_batch_below_one_and_a_negative_seed_are_one_line() -> None:
    with pytest.raises(InputError, match="batch is 0; give at least 1"):
        loader(batch=0)
    with pytest.raises(InputError, match="seed is -1; give 0 or"):
        loader(seed=-1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "augment", [(), ("flip", "crop", "cutout", "cutmix"), ("flip", "mixup"), ("resized-crop", "jitter")]
)
def test_processes_that_share_batches_see_what_one_alone_sees(augment: tuple[str, ...], size: int) -> None:
    """Every image with its own order, partner and augmentation, whatever process it falls to."""
    alone = loader(augment, batch=7, count=34)
    held = images(34)
    options = {"classes": 4, "batch": 7, "augment": augment, "normalize": Normalizer.of("unit", held), "seed": 0}
    team = [Loader(held, **options, rank=rank, size=size) for rank in range(size)]
    for whole, *parts in zip(alone.epoch(2), *(one.epoch(2) for one in team), strict=True):
        for name in ("x", "y", "index"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        counts = [len(part) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_no_process_is_left_with_a_single_image() -> None:
    held = images(23)
    options = {"classes": 4, "augment": (), "normalize": Normalizer.of("unit", held), "seed": 0}
    assert len(Loader(held, **options, batch=5)) == 5
    assert len(Loader(held, **options, batch=5, size=2)) == 4  # three images are left over
    with pytest.raises(InputError, match="batch is 5 on 3 processes; give at least 6"):
        Loader(held, **options, batch=5, size=3)
