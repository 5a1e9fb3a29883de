"""Training batches are a pure function of seed and epoch, whatever the number of processes."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from steppe import InputError
from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.loader import Loader, evaluation_batches
from steppe.data.normalize import Normalizer

AUGMENT = [(), ("flip", "crop", "cutout", "cutmix"), ("flip", "mixup"), ("resized-crop", "jitter")]


def images(count: int = 23, size: int = 8, channels: int = 3) -> Images:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, channels, size, size), generator=g, dtype=torch.uint8)
    return Images(x, torch.arange(count) % 4)


def loader(augment: tuple[str, ...] = (), batch: int = 5, count: int = 23, seed: int = 0, **options) -> Loader:
    train = images(count)
    normalize = Normalizer.of("unit", train)
    return Loader(train, classes=4, batch=batch, augment=augment, normalize=normalize, seed=seed, **options)


def index_of(batch: Batch) -> Tensor:
    assert batch.index is not None
    return batch.index


@pytest.mark.parametrize("augment", AUGMENT[:3])
def test_an_epoch_has_the_same_bits_whatever_came_before(augment: tuple[str, ...]) -> None:
    fresh, used = loader(augment), loader(augment)
    for number in (1, 2):
        list(used.epoch(number))
    for a, b in zip(fresh.epoch(3), used.epoch(3), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(index_of(a), index_of(b))


def test_every_image_comes_once_an_epoch_in_an_order_of_its_epoch_and_seed() -> None:
    train = images()
    batches = list(loader().epoch(1))
    index = torch.cat([index_of(b) for b in batches])
    assert sorted(index.tolist()) == list(range(23))
    assert torch.equal(torch.cat([b.y for b in batches]), train.y[index])
    assert torch.equal(torch.cat([b.x for b in batches]), train.x[index].float() / 255)
    orders = [torch.cat([index_of(b) for b in loader(seed=s).epoch(e)]) for s, e in ((0, 1), (0, 2), (1, 1))]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("size", [1, 2])
def test_an_alternate_flip_mirrors_each_image_in_every_second_epoch(size: int) -> None:
    """Half of the images begin mirrored; which half is the same for any number of processes."""
    train = images(60)
    mirrored = torch.zeros(4, 60, dtype=torch.bool)
    for rank in range(size):
        own = loader(("flip:mode=alternate",), batch=8, count=60, rank=rank, size=size)
        for epoch, batch in ((e, batch) for e in range(4) for batch in own.epoch(e + 1)):
            x = train.x[index_of(batch)].float() / 255
            flips = (batch.x == x.flip(3)).all(dim=(1, 2, 3))
            assert bool((flips ^ (batch.x == x).all(dim=(1, 2, 3))).all())
            mirrored[epoch, index_of(batch)] = flips
    assert torch.equal(mirrored[0], mirrored[2]) and torch.equal(mirrored[1], mirrored[3])
    assert torch.equal(mirrored[0], ~mirrored[1]) and 15 < int(mirrored[0].sum()) < 45
    expected = np.random.default_rng([0, 5]).random(60) < 0.5
    assert np.array_equal(mirrored[0].numpy(), expected)


@pytest.mark.parametrize(("count", "lengths"), [(20, [5] * 4), (22, [5] * 4 + [2]), (21, [5] * 4)])
def test_the_last_batch_is_left_out_if_it_is_a_single_image(count: int, lengths: list[int]) -> None:
    assert [len(b) for b in loader(count=count).epoch(1)] == lengths
    assert len(loader(count=count)) == len(lengths)


def test_augmentation_changes_neither_global_generators_nor_the_images() -> None:
    def generators() -> bytes:
        return torch.get_rng_state().numpy().tobytes() + pickle.dumps(np.random.get_state())

    train, before = images(), generators()
    pixels = train.x.clone()
    norm = Normalizer.of("standard", train)
    for augment in (("flip", "crop", "cutout", "cutmix"), ("flip", "cutout", "mixup")):
        list(Loader(train, classes=4, batch=5, augment=augment, normalize=norm, seed=0).epoch(1))
    list(evaluation_batches(train, 5, norm))
    assert generators() == before
    assert torch.equal(train.x, pixels)


def test_the_partner_comes_from_the_whole_set_and_not_from_the_batch() -> None:
    """With mixup a batch has labels of classes that none of its images has."""
    train = images(40)
    other_classes = [
        not set(torch.nonzero(b.y.sum(0)).flatten().tolist()) <= set(train.y[index_of(b)].tolist())
        for b in loader(("mixup",), batch=2, count=40).epoch(1)
    ]
    assert any(other_classes)


def test_crop_pads_with_black_and_cutout_fills_with_zeros_of_standardised_images() -> None:
    white = Images(torch.full((64, 1, 16, 16), 255, dtype=torch.uint8), torch.arange(64) % 2)
    norm = Normalizer((0.5,), (0.25,))
    values = {}
    for step in ("crop", "cutout"):
        batches = Loader(white, classes=2, batch=64, augment=(step,), normalize=norm, seed=0).epoch(0)
        values[step] = set(next(batches).x.flatten().tolist())
    assert values == {"crop": {-2.0, 2.0}, "cutout": {0.0, 2.0}}


@pytest.mark.parametrize("augment", AUGMENT)
def test_batches_are_contiguous_float32_with_fitting_labels(augment: tuple[str, ...]) -> None:
    batch = next(loader(augment).epoch(0))
    assert batch.x.is_contiguous() and batch.x.dtype == torch.float32
    mixed = "cutmix" in augment or "mixup" in augment
    assert (batch.y.shape, batch.y.dtype) == (((5, 4), torch.float32) if mixed else ((5,), torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ("none", "flip")}, "data.augment has none and others; give none alone"),
        ({"augment": ("cutmixx",)}, "unknown augmentation in data.augment 'cutmixx'; did you mean 'cutmix'"),
        ({"augment": ("mixup", "cutmix")}, "both mixup and cutmix"),
        ({"batch": 24}, "batch is 24 and only 23 images are trained on"),
        ({"batch": 0}, "batch is 0; give at least 1"),
        ({"seed": -1}, "seed is -1; give 0 or"),
        ({"size": 3}, "batch is 5 on 3 processes; give at least 6"),
    ],
)
def test_impossible_batches_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader(**options)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("augment", AUGMENT)
def test_processes_that_share_batches_see_what_one_alone_sees(augment: tuple[str, ...], size: int) -> None:
    """Every image keeps its order, partner and augmentation, whatever process gets it."""
    alone = loader(augment, batch=7, count=34)
    ranks = [loader(augment, batch=7, count=34, rank=rank, size=size) for rank in range(size)]
    for whole, *parts in zip(alone.epoch(2), *(one.epoch(2) for one in ranks), strict=True):
        for name in ("x", "y", "index"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        counts = [len(part) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_no_process_gets_a_single_image() -> None:
    assert len(loader()) == 5
    assert len(loader(size=2)) == 4  # three images are left over


def test_without_named_views_further_ones_are_random_crops_of_the_augmented_image() -> None:
    batches, plain = (list(loader(("cutmix",), **options).epoch(1)) for options in ({"crops": 2}, {}))
    moved = 0
    for batch, alone in zip(batches, plain, strict=True):
        assert torch.equal(batch.x, alone.x)
        assert torch.equal(batch.y, alone.y)
        assert list(batch.extra) == ["view 2", "view 3"]
        padded = torch.nn.functional.pad(batch.x, (1,) * 4)
        shifts = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        for view in batch.extra.values():
            assert torch.stack([(s == view).flatten(1).all(1) for s in shifts]).any(0).all()
            moved += int((view != batch.x).flatten(1).any(1).sum())
    assert moved > 20
