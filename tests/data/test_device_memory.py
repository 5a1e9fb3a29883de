"""Batches that are made on a device have the bits of those of the host, and the host waits for nothing."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from data.test_loader import images
from data.test_prefetch import AUGMENT, VIEWS, assert_same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from steppe.data import _device_memory as device_memory
from steppe.data import loader as loader_module
from steppe.data.dataset import Images
from steppe.data.loader import Loader, evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.data.transforms.auto_augment import COMPOSITIONS, compositions

EVERY_STEP = [
    (("flip", "crop", "cutout", "cutmix"), (), 0.0), (("resized-crop", "jitter", "mixup"), (), 0.0),
    (("rotate", "randaugment"), (), 0.1), ((), tuple(COMPOSITIONS), 0.0),
]  # fmt: skip


def loader(train: Images, augment: tuple[str, ...], views: tuple[str, ...] = (), noise: float = 0.0, **more: Any):
    normalize = Normalizer.of("standard", train, noise)
    steps = compositions(views, len(views))
    options = {"classes": 4, "batch": 8, "seed": 3, **more}
    return Loader(train, augment=augment, normalize=normalize, views=steps, **options)


def in_rows_of_a_file(train: Images) -> Images:
    """The same images as rows of others, as those of a split of a mapped file are."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    return Images(train.pixels[order], train.y, order.argsort())


@pytest.mark.parametrize("fits", [True, False], ids=["resident", "sent by batch"])
@pytest.mark.parametrize(
    ("augment", "views", "noise"),
    [*((a, (), 0.0) for a in AUGMENT), *(((), v, 0.1) for v in VIEWS[-1:]), *EVERY_STEP],
)
def test_the_path_of_a_device_has_the_bits_of_the_host_s(
    augment: tuple[str, ...], views: tuple[str, ...], noise: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the processor, whose free memory is none where the images are not to fit."""
    monkeypatch.setattr(device_memory, "_free_bytes", lambda _: float("inf") if fits else 0.0)
    train = images(20, size=8)
    for more in ({}, {"rank": 1, "size": 2, "crops": 0 if views else 2}):
        there = loader(in_rows_of_a_file(train), augment, views, noise, **more)
        there.sends = True
        for a, b in zip(there.epoch(2), loader(train, augment, views, noise, **more).epoch(2), strict=True):
            assert_same(a, b)
        assert (there.images.copies[there.device] is not None) == fits


class _Copies(TorchDispatchMode):
    """Counts copies from the host to a GPU by their number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.is_meta and any(not t.is_meta and t.ndim for t in tensors):
            self.sizes[out.numel()] += 1
        return out


@pytest.mark.parametrize(("augment", "views", "noise"), EVERY_STEP)
def test_on_a_gpu_nothing_is_read_and_an_epoch_s_draws_are_one_copy(
    augment: tuple[str, ...], views: tuple[str, ...], noise: float
) -> None:
    """The device is an imitated one: operations over two devices, and reads by the host, are errors."""
    train = images(12, size=16)
    made = loader(train, augment, views, noise, device="meta")
    pixels = train.pixels.numel()
    with FakeTensorMode(allow_non_fake_inputs=True), _Copies() as copies:
        batches = list(made.epoch(1))
        evaluated = list(evaluation_batches(train, 5, Normalizer.of("standard", train), "meta"))
    for batch in (*batches, *evaluated):
        tensors = [batch.x, batch.y, batch.index, *batch.extra.values()]
        assert {t.device.type for t in tensors if t is not None} == {"meta"}
    # the images, their labels, all draws; noise by batch
    assert copies.sizes.pop(pixels) == 1 and copies.sizes.pop(len(train)) == 1
    assert sum(copies.sizes.values()) == 1 + (len(batches) if noise else 0)


def test_images_that_do_not_fit_are_sent_as_bytes_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "_free_bytes", lambda _: 0.0)
    sent: list[int] = []
    send = device_memory.CopyStream.send

    def recorded(self: device_memory.CopyStream, tensors: dict[str, torch.Tensor]) -> Any:
        sent.append(len(tensors))
        assert all(t.dtype in (torch.uint8, torch.int64) for t in tensors.values())
        return send(self, tensors)

    monkeypatch.setattr(device_memory.CopyStream, "send", recorded)
    train = images(23, size=16)
    made = loader(train, ("crop", "cutmix"), device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for number, batch in enumerate(made.epoch(1), 1):
            assert batch.x.is_meta
            assert sent == [2] * min(number + 1, 3)
        sent.clear()
        assert all(b.x.is_meta for b in evaluation_batches(train, 5, Normalizer.of("unit", train), "meta"))
    assert sent == [3] * 5


def test_evaluation_has_the_bits_of_the_host_s(monkeypatch: pytest.MonkeyPatch) -> None:
    train = images(23, size=16)
    for free, noise in ((float("inf"), 0.0), (0.0, 0.0), (float("inf"), 0.1)):
        monkeypatch.setattr(device_memory, "_free_bytes", lambda _, free=free: free)
        norm = Normalizer.of("standard", train, noise)
        source = Images(train.pixels, train.y)
        bounds = [(0, 8), (8, 16), (16, 23)]
        copies = device_memory.CopyStream(torch.device("cpu"))
        made = loader_module._sent_evaluation(source, bounds, norm, copies)
        for a, b in zip(made, evaluation_batches(train, 8, norm), strict=True):
            assert_same(a, b)


def test_a_plan_is_sent_whole_and_in_its_types() -> None:
    plan = {
        "a": np.arange(5), "b": [np.array([True, False]), {"c": np.float32([[1.5], [2.5]])}], "d": ("x", 3),
        "e": np.arange(6.0).reshape(2, 3).T, "f": np.empty((0, 2)),
    }  # fmt: skip
    (tensors,) = device_memory.sent([plan], torch.device("cpu"))
    assert torch.equal(tensors["a"], torch.arange(5)) and tensors["d"] == ("x", 3)
    assert tensors["b"][0].tolist() == [True, False] and tensors["b"][1]["c"].dtype == torch.float32
    assert np.array_equal(tensors["e"].numpy(), plan["e"]) and tensors["f"].shape == (0, 2)
