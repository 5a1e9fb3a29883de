"""Operations on batches of 8-bit images equal Pillow's, image by image and bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch._subclasses import FakeTensorMode

from steppe.data.dataset import Images
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.transforms.auto_augment import COMPOSITIONS, compositions
from steppe.data.transforms.basic import Sample
from steppe.data.transforms.pil_ops import OPERATIONS, to_float, where
from steppe.data.transforms.registry import STEPS, make_steps

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
PILLOW = {
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
    """Noise, and images that are dark, or have few values or one."""
    x = rng.integers(0, 256, (count, channels, h, w), dtype=np.uint8)
    x[::4] = x[::4] // 7 + 40
    x[1::5] //= 128
    x[2::9] = x[2::9, :, :1, :1]
    return x


@pytest.mark.parametrize("name", {**OPERATIONS, **PILLOW})
@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3]), h=st.integers(1, 40), w=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_operations_equal_pillow_s(name, seed, channels, h, w):
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
        theirs = np.asarray(PILLOW[name](image, float(value[i])))
        assert (ours[i] == (theirs[None] if channels == 1 else theirs.transpose(2, 0, 1))).all(), value[i]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_where_is_torch_s_bit_for_bit(dtype):
    g = torch.Generator().manual_seed(0)
    a, b = ((torch.randn(4, 3, 6, 5, generator=g) * 100).to(dtype) for _ in range(2))
    if dtype.is_floating_point:
        a[0], b[1], a[2] = float("nan"), float("inf"), -0.0
    for mask in (torch.rand(4, 1, 6, 5, generator=g) < 0.5, torch.rand(4, 1, 1, 1, generator=g) < 0.5):
        for other in (a, a.flip(3), a[0, :, :1, :1], a.new_zeros(1)):
            ours, theirs = where(mask, other, b), torch.where(mask, other, b)
            assert ours.dtype == dtype
            assert torch.equal(ours.view(torch.uint8), theirs.contiguous().view(torch.uint8))


@pytest.mark.parametrize("blank", [None, (0.25, 0.5, 0.75)])
@pytest.mark.parametrize("names", [*[(n,) for n in (*STEPS, *COMPOSITIONS)], ("crop", "jitter", "flip", "cutmix")])
def test_uint8_and_float_images_are_augmented_alike(names, blank):
    """Images stay uint8 as long as possible; the result is bit for bit that of float32 images throughout."""
    steps = COMPOSITIONS[names[0]] if names[0] in COMPOSITIONS else make_steps(names, blank)
    g = torch.Generator().manual_seed(0)
    x, other = (torch.randint(0, 256, (9, 3, 16, 16), generator=g, dtype=torch.uint8) for _ in range(2))
    y, other_y = (torch.rand(9, 4, generator=g) for _ in range(2))
    results = []
    for convert in (lambda x: x, to_float):
        sample, partner, rng = Sample(convert(x), y), Sample(convert(other), other_y), np.random.default_rng(1)
        for step in steps:
            sample = step(sample, partner, rng)
        results.append(sample)
    from_uint8, from_float = results
    assert from_float.x.dtype == torch.float32
    assert torch.equal(to_float(from_uint8.x), from_float.x) and torch.equal(from_uint8.y, from_float.y)


def test_steps_that_move_pixels_keep_uint8():
    sample = Sample(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 2))
    floats = {
        n for n in STEPS if make_steps([n])[0](sample, sample, np.random.default_rng(0)).x.dtype != torch.uint8
    }
    assert floats == {"resized-crop", "jitter", "mixup"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", [*STEPS, *COMPOSITIONS])
def test_images_are_augmented_on_their_device(name, dtype):
    """Fake tensors have a device and cannot be combined with tensors of another one."""
    steps = COMPOSITIONS[name] if name in COMPOSITIONS else make_steps([name], (0.5, 0.5, 0.5))
    with FakeTensorMode(allow_non_fake_inputs=True):
        sample, other = (
            Sample(torch.zeros(8, 3, 16, 16, dtype=dtype, device="meta"), torch.rand(8, 4, device="meta"))
            for _ in range(2)
        )
        for step in steps:
            sample = step(sample, other, np.random.default_rng(0))
        assert sample.x.device.type == sample.y.device.type == "meta"
        assert sample.x.shape == (8, 3, 16, 16)


def test_a_loader_yields_batches_on_its_device():
    images = Images(torch.zeros(40, 3, 16, 16, dtype=torch.uint8), torch.arange(40) % 5)
    normalize = Normalizer((0.5,) * 3, (0.2,) * 3, noise=0.1)
    options = {"classes": 5, "batch": 12, "normalize": normalize, "seed": 7, "device": "meta"}
    views = compositions(["crop-randaugment", "crop-flip-cutout"], 2)
    loaders = (
        Loader(images, augment=("crop", "cutmix", "cutout"), **options),
        Loader(images, augment=(), views=views, **options),
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        mixing, several = (next(loader.epoch(1)) for loader in loaders)
    assert mixing.x.device.type == mixing.y.device.type == "meta"
    assert several.x.device.type == several.extra["view 2"].device.type == "meta"
