"""Automatic augmentation and views: the operations' strengths, and that views depend on the epoch alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from steppe.data.dataset import Images
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.transforms.auto_augment import (
    _POLICIES,
    COMPOSITIONS,
    autoaugment,
    black_square,
    compositions,
    randaugment,
    rotate,
    strength,
)
from steppe.data.transforms.basic import Sample
from steppe.data.transforms.pil_ops import OPERATIONS
from steppe.errors import InputError

NAMES = ("crop-flip-rotate", "crop-flip-cutout", "crop-randaugment", "crop-autoaugment")


def pictures(count: int = 8, side: int = 16, channels: int = 3) -> Sample:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, channels, side, side), generator=g).float() / 255
    return Sample(x, torch.zeros(count, 2))


class Fixed:
    """Draws that are always these."""

    def __init__(self, uniform: float = 0.0, whole: int = 0):
        self.uniform, self.whole = uniform, whole

    def random(self, size: int, /) -> np.ndarray:
        return np.full(size, self.uniform)

    def integers(self, low: int, high: int, size: int, /) -> np.ndarray:
        return np.full(size, min(max(self.whole, low), high - 1))

    def beta(self, a: float, b: float, size: int, /) -> np.ndarray:
        return np.full(size, 0.5)


def test_the_black_square_is_half_a_side_and_clipped():
    own = Sample(torch.ones(4, 3, 16, 16), torch.zeros(4, 2))
    middle = black_square(own, own, Fixed(whole=8)).x
    assert (middle[:, :, 4:12, 4:12] == 0).all()
    assert middle.sum() == 4 * 3 * (256 - 64)
    corner = black_square(own, own, Fixed(whole=0)).x
    assert (corner[:, :, :4, :4] == 0).all()
    assert corner.sum() == 4 * 3 * (256 - 16)


@pytest.mark.parametrize(("uniform", "angle"), [(0.5, 0.0), (1.0, 15.0), (0.0, -15.0)])
def test_rotation_is_by_up_to_15_degrees(uniform, angle):
    own = pictures(2, 32)
    expected = OPERATIONS["rotate"]((own.x * 255).round().byte(), torch.full((2,), angle, dtype=torch.float64))
    assert torch.equal((rotate(own, own, Fixed(uniform)).x * 255).round().byte(), expected)


def test_strengths_are_those_of_the_reference():
    """On 32 x 32 at strength 9 of 30, as the reference on the released code lists them."""

    def at(name: str) -> float:
        return strength(name, 9, 31, 32, 32, negative=False)

    assert at("shear-x") == pytest.approx(0.09)
    assert at("translate-y") == pytest.approx(4.35, abs=0.01)
    assert at("rotate") == pytest.approx(9)
    assert at("color") == at("sharpness") == pytest.approx(0.27)
    assert at("posterize") == 7
    assert at("solarize") == pytest.approx(178.5)
    assert strength("rotate", 9, 31, 32, 32, negative=True) == pytest.approx(-9)
    assert strength("solarize", 9, 31, 32, 32, negative=True) == pytest.approx(178.5)
    assert len(_POLICIES) == 25


@pytest.mark.parametrize("step", [randaugment, autoaugment, rotate, black_square])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_keeps_shape_and_range_and_changes_no_input(step, channels):
    own = pictures(64, 16, channels)
    before = own.x.clone()
    out = step(own, own, np.random.default_rng(0))
    assert torch.equal(own.x, before)
    assert out.x.shape == own.x.shape
    assert out.x.min() >= 0 and out.x.max() <= 1
    assert torch.equal((out.x * 255).round() / 255, out.x)
    assert (out.x != own.x).flatten(1).any(1).float().mean() > 0.5


def loader(views: tuple[str, ...], count: int, **settings: object) -> Loader:
    g = torch.Generator().manual_seed(1)
    images = Images(torch.randint(0, 256, (40, 3, 16, 16), generator=g, dtype=torch.uint8), torch.arange(40) % 5)
    unit = Normalizer((0.0,) * 3, (1.0,) * 3)
    options = {"classes": 5, "batch": 12, "augment": ("cutmix",), "normalize": unit, "seed": 7, **settings}
    return Loader(images, views=compositions(views, count), **options)


def all_views(batch) -> list[Tensor]:
    return [batch.x, *(batch.extra[k] for k in sorted(batch.extra))]


def test_every_network_gets_its_own_view_of_the_same_images():
    batches = list(loader(NAMES, 4).epoch(1))
    assert [sorted(b.extra) for b in batches] == [["view 2", "view 3", "view 4"]] * 4
    first = all_views(batches[0])
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[i + 1 :])
    plain = next(loader(("plain",), 1).epoch(1))
    assert torch.equal(plain.index, batches[0].index)
    assert batches[0].y.dtype == torch.int64  # views do not mix labels, whatever augment says
    alone, two = loader(NAMES, 1), loader(NAMES, 2)
    for a, b in zip(alone.epoch(1), two.epoch(1), strict=True):
        assert torch.equal(a.x, b.x)


def test_views_are_a_function_of_the_epoch_on_any_number_of_processes():
    one, again = loader(NAMES, 3), loader(NAMES, 3)
    list(one.epoch(1))  # earlier epochs do not matter
    for a, b in zip(one.epoch(2), again.epoch(2), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(all_views(a), all_views(b), strict=True))
    order = {k: next(again.epoch(k)) for k in (1, 2)}
    assert not torch.equal(order[1].extra["view 2"], order[2].extra["view 2"])
    whole = list(loader(NAMES, 3).epoch(1))
    parts = [list(loader(NAMES, 3, rank=r, size=2).epoch(1)) for r in (0, 1)]
    for k, batch in enumerate(whole):
        for a, *halves in zip(all_views(batch), *(all_views(p[k]) for p in parts), strict=True):
            assert torch.equal(a, torch.cat(halves))


def test_unknown_or_too_few_views_are_refused():
    with pytest.raises(InputError, match="data.views has 2 views and the method takes 3; give 3, or one"):
        compositions(("plain", "crop-flip"), 3)
    with pytest.raises(InputError, match="did you mean 'crop-flip'"):
        compositions(("crop-flop",), 1)
    assert len(compositions(("plain",), 3)) == 1
    guide = (Path(__file__).parents[2] / "docs/how-to/distillation.md").read_text()
    assert all(f"`{name}`" in guide for name in COMPOSITIONS) and set(COMPOSITIONS) >= set(NAMES)
