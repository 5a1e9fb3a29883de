"""Views of an image: what each composition does to pixels, and that the loader gives them anew only by epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from steppe.config import Data, Run, essential
from steppe.data.dataset import Images
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.transforms.auto_augment import (
    _POLICIES,
    COMPOSITIONS,
    apply_each,
    autoaugment,
    black_square,
    compositions,
    randaugment,
    rotate,
    strength,
)
from steppe.data.transforms.basic import Sample
from steppe.data.transforms.draws import RowDraws
from steppe.errors import InputError

NAMES = ("crop-flip", "crop-flip-cutout", "crop-randaugment", "crop-autoaugment")


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
def test_rotation_is_by_the_nearest_pixel_about_the_middle(uniform, angle):
    own = pictures(2, 32)
    out = rotate(own, own, Fixed(uniform)).x
    if angle == 0:
        assert torch.equal(out, own.x)
    # by hand: where does the pixel at (r, c) come from?
    a, c = np.deg2rad(angle), 15.5
    for r, k in [(16, 16), (3, 28), (20, 9), (12, 25)]:
        x = np.cos(a) * (k - c) - np.sin(a) * (r - c) + c
        y = np.sin(a) * (k - c) + np.cos(a) * (r - c) + c
        if abs(x % 1 - 0.5) > 0.05 and abs(y % 1 - 0.5) > 0.05:
            assert torch.equal(out[:, :, r, k], own.x[:, :, round(y), round(x)])


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


def test_operations_do_to_pixels_what_they_say():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = torch.from_numpy(array)[None, None]

    def done(name: str, value: float) -> np.ndarray:
        return apply_each(image, [name], [value])[0, 0].numpy().astype(int)

    assert (done("posterize", 7) == (array & 0xFE)).all()
    assert (done("solarize", 178.5) == np.where(array < 178.5, array, 255 - array.astype(int))).all()
    assert (done("invert", 0) == 255 - array.astype(int)).all()
    assert (done("translate-x", 4.35)[:, 4:] == array[:, :12]).all()
    assert (done("translate-x", 4.35)[:, :4] == 0).all()
    assert (done("translate-y", -4.35)[:12] == array[4:]).all()
    assert (done("brightness", -0.5) == array // 2).all()
    assert (done("identity", 0) == array).all()
    both = apply_each(image.expand(3, 1, 16, 16), ["invert", "identity", "solarize"], [0, 0, 100]).numpy()[:, 0]
    assert (both[0] == 255 - array).all()
    assert (both[1] == array).all()
    assert (both[2] == np.where(array < 100, array, 255 - array)).all()
    sheared = done("shear-x", 0.3)
    for r in (0, 5, 10, 15):
        shift = 0.3 * (r + 0.5)
        for c in range(16):
            source = int(np.floor(c + 0.5 + shift))
            assert sheared[r, c] == (array[r, source] if source < 16 else 0)


@pytest.mark.parametrize("step", [randaugment, autoaugment, rotate, black_square])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_keeps_shape_range_and_what_it_is_given(step, channels):
    own = pictures(64, 16, channels)
    before = own.x.clone()
    out = step(own, own, np.random.default_rng(0))
    assert torch.equal(own.x, before)
    assert out.x.shape == own.x.shape
    assert out.x.min() >= 0 and out.x.max() <= 1
    assert torch.equal((out.x * 255).round() / 255, out.x)
    assert (out.x != own.x).flatten(1).any(1).float().mean() > 0.5


def test_equal_draws_give_the_rows_of_a_batch_what_the_whole_gives():
    own = pictures(12)
    for step in (randaugment, autoaugment, rotate, black_square):
        whole = step(own, own, np.random.default_rng(3)).x
        part = Sample(own.x[4:9], own.y[4:9])
        draws = RowDraws(np.random.default_rng(3), slice(4, 9), 12)
        assert torch.equal(step(part, part, draws).x, whole[4:9]), step


def loader(views: tuple[str, ...], wanted: int, **settings: object) -> Loader:
    g = torch.Generator().manual_seed(1)
    images = Images(torch.randint(0, 256, (40, 3, 16, 16), generator=g, dtype=torch.uint8), torch.arange(40) % 5)
    unit = Normalizer((0.0,) * 3, (1.0,) * 3)
    options = {"classes": 5, "batch": 12, "augment": ("cutmix",), "normalize": unit, "seed": 7, **settings}
    return Loader(images, views=compositions(views, wanted), **options)


def seen(batch) -> list[Tensor]:
    return [batch.x, *(batch.extra[k] for k in sorted(batch.extra))]


def test_every_network_has_its_own_view_of_the_same_images():
    batches = list(loader(NAMES, 4).epoch(1))
    assert [sorted(b.extra) for b in batches] == [["view 2", "view 3", "view 4"]] * 4
    first = seen(batches[0])
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[i + 1 :])
    plain = next(loader(("plain",), 1).epoch(1))
    assert torch.equal(plain.index, batches[0].index)
    assert batches[0].y.dtype == torch.int64  # views do not mix labels, whatever augment says


def test_views_are_the_same_whenever_an_epoch_is_asked_for_and_new_in_the_next():
    one, again = loader(NAMES, 3), loader(NAMES, 3)
    list(one.epoch(1))  # what was looked at before does not matter
    for a, b in zip(one.epoch(2), again.epoch(2), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(seen(a), seen(b), strict=True))
    order = {k: next(again.epoch(k)) for k in (1, 2)}
    assert not torch.equal(order[1].extra["view 2"], order[2].extra["view 2"])


def test_processes_are_given_the_rows_of_what_one_would_see():
    whole = list(loader(NAMES, 3).epoch(1))
    parts = [list(loader(NAMES, 3, rank=r, size=2).epoch(1)) for r in (0, 1)]
    for k, batch in enumerate(whole):
        for a, *halves in zip(seen(batch), *(seen(p[k]) for p in parts), strict=True):
            assert torch.equal(a, torch.cat(halves))


def test_a_further_view_changes_nothing_about_the_first():
    alone, two = loader(NAMES, 1), loader(NAMES, 2)
    for a, b in zip(alone.epoch(1), two.epoch(1), strict=True):
        assert torch.equal(a.x, b.x)


def test_what_is_asked_for_must_be_there():
    with pytest.raises(InputError, match="data.views has 2 views and the method takes 3; give 3, or one"):
        compositions(("plain", "crop-flip"), 3)
    with pytest.raises(InputError, match="did you mean 'crop-flip'"):
        compositions(("crop-flop",), 1)
    assert len(compositions(("plain",), 3)) == 1
    assert set(COMPOSITIONS) >= set(NAMES)


def test_a_run_without_views_keeps_its_name():
    assert "views" not in essential(Run().as_dict())["data"]
    assert essential(Run(data=Data(views=("plain",))).as_dict())["data"]["views"] == ("plain",)
