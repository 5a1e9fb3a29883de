"""Batches made by other processes: the same bits in the same order, whoever makes them and wherever images lie."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from data.test_loader import images
from support.photos import classes_of_photos, load

from steppe import RunError
from steppe.config import Data, Run
from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.loader import Loader, Normalizer
from steppe.data.prefetch import PrefetchLoader, prepared
from steppe.data.sources import cache
from steppe.data.transforms.auto_augment import COMPOSITIONS, compositions
from steppe.data.transforms.registry import STEPS
from steppe.training import run as engine

EVERY = [(name,) for name in STEPS] + [("flip", "crop", "cutout", "cutmix"), ("resized-crop", "jitter", "mixup")]


def loader(held: Images, augment: tuple[str, ...] = (), views: tuple[str, ...] = ()) -> Loader:
    normalize = Normalizer.of("standard", held, 0.1 if views else 0.0)
    made = compositions(views, len(views))
    return Loader(held, classes=4, batch=5, augment=augment, normalize=normalize, seed=3, views=made)


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert a.index is not None and b.index is not None and torch.equal(a.index, b.index)
    assert a.extra.keys() == b.extra.keys()
    assert all(torch.equal(a.extra[k], b.extra[k]) for k in a.extra)


@pytest.mark.parametrize("augment", EVERY)
def test_every_third_batch_is_what_it_is_among_all(augment: tuple[str, ...]) -> None:
    held = images(size=16)
    whole = list(loader(held, augment).epoch(2))
    assert len(whole) == 5
    for first in range(3):
        own = list(loader(held, augment).epoch(2, first, 3))
        assert len(own) == len(whole[first::3])
        for a, b in zip(own, whole[first::3], strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("view", COMPOSITIONS)
def test_so_it_is_with_views(view: str) -> None:
    held = images(size=16)
    whole = list(loader(held, views=(view, "crop-flip")).epoch(1))
    for a, b in zip(loader(held, views=(view, "crop-flip")).epoch(1, 1, 2), whole[1::2], strict=True):
        assert_same(a, b)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALL", 0)


def test_two_processes_give_what_one_gives_from_memory_and_from_a_mapped_file(tmp_path: Path, large: None) -> None:
    """Several epochs, one of them left in its middle."""
    mapped = load(classes_of_photos(tmp_path / "photos", per_class=14)).train
    assert mapped.file is not None
    copied = Images(mapped.x, mapped.y)
    augment = ("crop", "flip", "cutmix")
    for held in (mapped, copied):
        ahead = PrefetchLoader(loader(held, augment), 2)
        next(iter(ahead.epoch(1)))
        for number in (1, 4):
            for a, b in zip(ahead.epoch(number), loader(copied, augment).epoch(number), strict=True):
                assert_same(a, b)


def test_a_killed_process_is_one_line() -> None:
    ahead = PrefetchLoader(loader(images(60)), 1)
    batches = ahead.epoch(1)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match="a process that makes batches is gone"):
        list(batches)


def test_no_workers_are_this_process() -> None:
    one = loader(images())
    assert prepared(one, 0) is one


def test_a_run_ends_with_the_same_bits_and_under_the_same_name(tmp_path: Path) -> None:
    data = Data(train=60, test=20, size=18, augment=("flip", "crop", "cutmix"))
    found = []
    for workers in (0, 2):
        run = Run(epochs=2, batch=20, data=data, workers=workers)
        folder = tmp_path / str(workers) / engine.digest(run)
        result = engine.train_run(run, folder, engine.load_data(run))
        kept = {k: result[k] for k in ("test", "val", "steps")}
        found.append((folder.name, (folder / "metrics.jsonl").read_text(), json.dumps(kept)))
    assert found[0] == found[1]


def test_the_mean_of_a_set_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    held = images(50)
    whole = Normalizer.of("standard", held)
    monkeypatch.setattr("steppe.data.loader._CHUNK", 7)
    assert Normalizer.of("standard", held) == whole
    x = held.x.double().numpy() / 255
    assert np.allclose(whole.mean, x.mean(axis=(0, 2, 3)), rtol=1e-12)
