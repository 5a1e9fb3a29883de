"""Operations on batches of bytes against Pillow, image by image: bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch._subclasses import FakeTensorMode

from steppe.data.augment import Sample
from steppe.data.images import Images
from steppe.data.loader import Loader, Normalizer
from steppe.data.pixels import OPERATIONS
from steppe.data.steps import STEPS, chain
from steppe.data.views import COMPOSITIONS, compositions

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


@pytest.mark.parametrize("name", [*STEPS, *COMPOSITIONS])
def test_images_elsewhere_are_augmented_there(name):
    """Tensors without contents know where they are, and refuse to be mixed with those of another place."""
    steps = COMPOSITIONS[name] if name in COMPOSITIONS else chain([name], torch.zeros(3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        own = Sample(torch.rand(8, 3, 16, 16, device="meta"), torch.rand(8, 4, device="meta"))
        other = Sample(torch.rand(8, 3, 16, 16, device="meta"), torch.rand(8, 4, device="meta"))
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
