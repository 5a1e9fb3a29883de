"""Operations on batches of bytes against Pillow, image by image: bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch._subclasses import FakeTensorMode

from steppe.data.dataset import Images
from steppe.data.loader import Loader, Normalizer
from steppe.data.transforms.auto_augment import COMPOSITIONS, compositions
from steppe.data.transforms.basic import Sample
from steppe.data.transforms.pil_ops import OPERATIONS, picked, unit
from steppe.data.transforms.registry import STEPS, chain

NEAREST, AFFINE = Image.Resampling.NEAREST, Image.Transform.AFFINE
RANGE = {
    "shear-x": (-0.5, 0.5),
    "shear-y": (-0.5, 0.5),
    "translate-x": (-14.0, 14.0),
    "translate-y": (-14.0, 14.0),
    "rotate": (-40.0, 40.0),
    "posterize": (1, 8),
    "solarize": (0.0, 255.0),
}
THEIRS = {
    "identity": lambda im, v: im,
    "shear-x": lambda im, v: im.transform(im.size, AFFINE, (1, v, 0, 0, 1, 0), NEAREST),
    "shear-y": lambda im, v: im.transform(im.size, AFFINE, (1, 0, 0, v, 1, 0), NEAREST),
    "translate-x": lambda im, v: im.transform(im.size, AFFINE, (1, 0, -int(v), 0, 1, 0), NEAREST),
    "translate-y": lambda im, v: im.transform(im.size, AFFINE, (1, 0, 0, 0, 1, -int(v)), NEAREST),
    "rotate": lambda im, v: im.rotate(v, NEAREST),
    "brightness": lambda im, v: ImageEnhance.Brightness(im).enhance(1 + v),
    "color": lambda im, v: ImageEnhance.Color(im).enhance(1 + v),
    "contrast": lambda im, v: ImageEnhance.Contrast(im).enhance(1 + v),
    "sharpness": lambda im, v: ImageEnhance.Sharpness(im).enhance(1 + v),
    "posterize": lambda im, v: ImageOps.posterize(im, int(v)),
    "solarize": lambda im, v: ImageOps.solarize(im, v),
    "autocontrast": lambda im, v: ImageOps.autocontrast(im),
    "equalize": lambda im, v: ImageOps.equalize(im),
    "invert": lambda im, v: ImageOps.invert(im),
}


def pictures(rng: np.random.Generator, count: int, channels: int, h: int, w: int) -> np.ndarray:
    """Noise, and images that are dark, of few values, or of one."""
    x = rng.integers(0, 256, (count, channels, h, w), dtype=np.uint8)
    x[::4] = x[::4] // 7 + 40
    x[1::5] //= 128
    x[2::9] = x[2::9, :, :1, :1]
    return x


def test_every_operation_has_an_oracle():
    assert OPERATIONS.keys() == THEIRS.keys()


@pytest.mark.parametrize("name", OPERATIONS)
@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3]), h=st.integers(1, 40), w=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_it_is_what_pillow_gives(name, seed, channels, h, w):
    rng = np.random.default_rng(seed)
    x = pictures(rng, 12, channels, h, w)
    low, high = RANGE.get(name, (-0.9, 0.9))
    value = rng.uniform(low, high, len(x))
    value[:3] = low, high, np.clip(0.0, low, high)
    if name == "posterize":
        value = value.round()
    ours = OPERATIONS[name](torch.from_numpy(x), torch.from_numpy(value)).numpy()
    for i in range(len(x)):
        image = Image.fromarray(x[i, 0] if channels == 1 else np.ascontiguousarray(x[i].transpose(1, 2, 0)))
        theirs = np.asarray(THEIRS[name](image, float(value[i])))
        assert (ours[i] == (theirs[None] if channels == 1 else theirs.transpose(2, 0, 1))).all(), value[i]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_what_is_picked_is_what_where_gives_bit_for_bit(dtype):
    g = torch.Generator().manual_seed(0)
    a, b = ((torch.randn(4, 3, 6, 5, generator=g) * 100).to(dtype) for _ in range(2))
    if dtype.is_floating_point:
        a[0], b[1], a[2] = float("nan"), float("inf"), -0.0
    for mask in (torch.rand(4, 1, 6, 5, generator=g) < 0.5, torch.rand(4, 1, 1, 1, generator=g) < 0.5):
        for other in (a, a.flip(3), a[0, :, :1, :1], a.new_zeros(1)):
            found, wanted = picked(mask, other, b), torch.where(mask, other, b)
            assert found.dtype == dtype
            assert torch.equal(found.view(torch.uint8), wanted.contiguous().view(torch.uint8))


@pytest.mark.parametrize("blank", [None, torch.tensor([0.25, 0.5, 0.75])])
@pytest.mark.parametrize("names", [*[(n,) for n in (*STEPS, *COMPOSITIONS)], ("crop", "jitter", "flip", "cutmix")])
def test_bytes_and_numbers_are_augmented_alike(names, blank):
    """Images stay bytes as long as they can; what comes out is bit for bit what numbers throughout would give."""
    steps = COMPOSITIONS[names[0]] if names[0] in COMPOSITIONS else chain(names, blank)
    g = torch.Generator().manual_seed(0)
    x, other = (torch.randint(0, 256, (9, 3, 16, 16), generator=g, dtype=torch.uint8) for _ in range(2))
    y, partner_s = (torch.rand(9, 4, generator=g) for _ in range(2))
    results = []
    for form in (lambda x: x, unit):
        own, partner, rng = Sample(form(x), y), Sample(form(other), partner_s), np.random.default_rng(1)
        for step in steps:
            own = step(own, partner, rng)
        results.append(own)
    as_bytes, as_numbers = results
    assert as_numbers.x.dtype == torch.float32
    assert torch.equal(unit(as_bytes.x), as_numbers.x) and torch.equal(as_bytes.y, as_numbers.y)


def test_steps_that_move_pixels_leave_bytes():
    own = Sample(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 2))
    values = {n for n in STEPS if chain([n])[0](own, own, np.random.default_rng(0)).x.dtype != torch.uint8}
    assert values == {"resized-crop", "jitter", "mixup"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", [*STEPS, *COMPOSITIONS])
def test_images_elsewhere_are_augmented_there(name, dtype):
    """Tensors without contents know where they are, and refuse to be mixed with those of another place."""
    steps = COMPOSITIONS[name] if name in COMPOSITIONS else chain([name], torch.zeros(3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        own, other = (
            Sample(torch.zeros(8, 3, 16, 16, dtype=dtype, device="meta"), torch.rand(8, 4, device="meta"))
            for _ in range(2)
        )
        for step in steps:
            own = step(own, other, np.random.default_rng(0))
        assert own.x.device.type == own.y.device.type == "meta"
        assert own.x.shape == (8, 3, 16, 16)


def test_a_loader_sends_bytes_to_its_device_and_gives_batches_there():
    images = Images(torch.zeros(40, 3, 16, 16, dtype=torch.uint8), torch.arange(40) % 5)
    unit = Normalizer((0.5,) * 3, (0.2,) * 3, noise=0.1)
    options = {"classes": 5, "batch": 12, "normalize": unit, "seed": 7, "device": "meta"}
    views = compositions(["crop-randaugment", "crop-flip-cutout"], 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        mixing = next(Loader(images, augment=("crop", "cutmix", "cutout"), **options).epoch(1))
        several = next(Loader(images, augment=(), views=views, **options).epoch(1))
    assert mixing.x.device.type == mixing.y.device.type == "meta"
    assert several.x.device.type == several.extra["view 2"].device.type == "meta"
