"""Noisy and limited data: the published subsets, noise that is fixed in evaluation and new in training."""

import numpy as np
import pytest
import torch

from steppe.config import Data, Optim
from steppe.data import load
from steppe.data.dataset import Images
from steppe.data.loader import Loader, evaluation_batches
from steppe.data.normalize import Normalizer, fixed_noise
from steppe.data.splits import legacy_choice
from steppe.errors import InputError


def test_the_published_subset_of_cifar_has_no_validation_images():
    """The first five places of the published lists, by which image of its class each is.

    CIFAR-10's first class has its 861st, 3773rd, ... image at 8335, 37579, 30906, 4488, 44041; CIFAR-100's its
    103rd, 436th, ... at 9502, 42182, 33564, 25827, 9618.
    """
    ten = np.repeat([6, 9, 4], 5000)
    chosen = legacy_choice(ten, 0.1)
    assert chosen[:5].tolist() == [860, 3772, 3092, 466, 4426]
    assert len(chosen) == 1500 and len(set(chosen[:500].tolist())) < 500
    assert (ten[chosen] == np.repeat([6, 9, 4], 500)).all()  # in the order of first appearance
    assert legacy_choice(np.repeat([19, 29], 500), 0.1)[:5].tolist() == [102, 435, 348, 270, 106]
    spread = np.tile([6, 9, 4], 5000)
    assert (legacy_choice(spread, 0.1) == 3 * (chosen % 5000) + chosen // 5000).all()
    whole = load("digits", Data())
    limited = load("digits", Data(legacy_share=0.1, val=60))
    assert 100 < len(limited.train) < 180
    assert torch.equal(limited.test.x, whole.test.x)
    distinct = {image.numpy().tobytes() for image in limited.train.x}
    assert len(distinct) < len(limited.train)  # with repetitions
    assert not distinct & {image.numpy().tobytes() for image in limited.val.x}
    with pytest.raises(InputError, match=r"data.legacy_share is 0.1 and data.train 50; .* only one of them"):
        Data(legacy_share=0.1, train=50)


def pictures(count: int = 40) -> Images:
    g = torch.Generator().manual_seed(1)
    return Images(
        torch.randint(0, 256, (count, 3, 16, 16), generator=g, dtype=torch.uint8), torch.arange(count) % 5
    )


def test_a_test_image_always_has_the_same_noise():
    images = pictures()
    noisy = Normalizer((0.5,) * 3, (0.25,) * 3, 2.0)
    (whole,) = evaluation_batches(images, 100, noisy)
    parts = torch.cat([b.x for b in evaluation_batches(images, 7, noisy)])
    assert torch.equal(whole.x, parts)
    noise = (whole.x - Normalizer((0.5,) * 3, (0.25,) * 3)(images.x)) / 2
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert torch.allclose(noise, fixed_noise(images.x), atol=1e-5)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.1  # every image its own


def test_training_noise_is_new_in_every_epoch_and_view_and_leaves_labels_alone():
    images = pictures()

    def loader(noise: float, **place: int) -> Loader:
        unit = Normalizer((0.0,) * 3, (1.0,) * 3, noise)
        return Loader(images, classes=5, batch=20, augment=(), normalize=unit, seed=3, views=[(), ()], **place)

    def noise(epoch: int, view: str | None = None) -> torch.Tensor:
        rows = []
        for a, b in zip(loader(0.0).epoch(epoch), loader(1.0).epoch(epoch), strict=True):
            assert torch.equal(a.y, b.y) and torch.equal(a.y, images.y[a.index])
            rows.append(b.x - a.x if view is None else b.extra[view] - a.extra[view])
        return torch.cat(rows)

    one, two, other = noise(1), noise(2), noise(1, "view 2")
    assert torch.equal(one, noise(1))
    for a, b in ((one, two), (one, other)):
        assert abs(float((a * b).mean())) < 0.03
    assert float(one.std()) == pytest.approx(1, abs=0.02)
    halves = [next(loader(1.0, rank=r, size=2).epoch(1)) for r in (0, 1)]
    assert torch.equal(torch.cat([h.x for h in halves]), next(loader(1.0).epoch(1)).x)


def test_the_rate_falls_at_epochs_150_and_225_of_300():
    steps = Optim(name="sgd", lr=0.1, schedule="step")
    rates = [steps.lr_at(epoch / 300) for epoch in (0, 149, 150, 224, 225, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
