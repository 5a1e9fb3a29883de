"""Batches that worker processes make have the bits and the order of those that one process makes."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data.test_loader import images
from support.photos import class_folders, load

from steppe import RunError
from steppe.config import Data, Run
from steppe.core.batch import Batch
from steppe.data.dataset import Images
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.prefetch import PrefetchLoader
from steppe.data.transforms.auto_augment import COMPOSITIONS, compositions
from steppe.data.transforms.registry import STEPS
from steppe.training import run as engine

AUGMENT = [(name,) for name in STEPS] + [("flip", "crop", "cutout", "cutmix"), ("resized-crop", "jitter", "mixup")]
VIEWS = [(name, "crop-flip") for name in COMPOSITIONS]


def loader(train: Images, augment: tuple[str, ...] = (), views: tuple[str, ...] = ()) -> Loader:
    normalize = Normalizer.of("standard", train, 0.1 if views else 0.0)
    steps = compositions(views, len(views))
    return Loader(train, classes=4, batch=5, augment=augment, normalize=normalize, seed=3, views=steps)


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert a.index is not None and b.index is not None and torch.equal(a.index, b.index)
    assert a.extra.keys() == b.extra.keys()
    assert all(torch.equal(a.extra[k], b.extra[k]) for k in a.extra)


@pytest.mark.parametrize(("augment", "views"), [*((a, ()) for a in AUGMENT), *(((), v) for v in VIEWS)])
def test_skipping_batches_does_not_change_the_others(augment: tuple[str, ...], views: tuple[str, ...]) -> None:
    train = images(size=16)
    whole = list(loader(train, augment, views).epoch(2))
    assert len(whole) == 5
    for first in range(3):
        for a, b in zip(loader(train, augment, views).epoch(2, first, 3), whole[first::3], strict=True):
            assert_same(a, b)


def test_two_workers_give_the_batches_of_one_process_from_a_mapped_file(tmp_path: Path, mapped_cache) -> None:
    """Several epochs, one of them left in its middle."""
    mapped = load(class_folders(tmp_path / "photos", per_class=14)).train
    assert mapped.file is not None
    augment = ("crop", "flip", "cutmix")
    prefetching = PrefetchLoader(loader(mapped, augment), 2)
    next(iter(prefetching.epoch(1)))
    for number in (1, 4):
        expected = loader(Images(mapped.x, mapped.y), augment).epoch(number)
        for a, b in zip(prefetching.epoch(number), expected, strict=True):
            assert_same(a, b)


def test_a_killed_worker_is_one_line() -> None:
    batches = PrefetchLoader(loader(images(60)), 1).epoch(1)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match="a process that makes batches died"):
        list(batches)


def test_workers_change_neither_the_bits_of_a_run_nor_its_name(tmp_path: Path) -> None:
    data = Data(train=60, test=20, size=18, augment=("flip", "crop", "cutmix"))
    results = []
    for workers in (0, 2):
        run = Run(epochs=2, batch=20, data=data, workers=workers)
        folder = tmp_path / str(workers) / engine.digest(run)
        result = engine.train_run(run, folder, engine.load_data(run))
        numbers = json.dumps({k: result[k] for k in ("test", "val", "steps")})
        results.append((folder.name, (folder / "metrics.jsonl").read_text(), numbers))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOSYS, "Function not implemented"),
    ],
    ids=["allocate", "bus error", "no space", "no semaphores"],
)
def test_too_little_shared_memory_is_one_line_with_its_remedy(error: Exception) -> None:
    def failing():
        raise error
        yield

    prefetching = PrefetchLoader(loader(images(size=16)), 2)
    prefetching.batches = failing()
    with pytest.raises(RunError, match=r"^/dev/shm is too small .* of 2 workers .*--shm-size.*--workers 0"):
        next(prefetching.epoch(1))


SCRIPT = """
import os, signal
from steppe import data
from steppe.config import Data
from steppe.data.loader import Loader
from steppe.data.normalize import Normalizer
from steppe.data.prefetch import PrefetchLoader

if __name__ == "__main__":
    images = data.load("synthetic", Data(train=64, test=50))
    normalize = Normalizer.of("standard", images.train)
    loader = Loader(images.train, classes=10, batch=8, augment=(), normalize=normalize, seed=0)
    made = PrefetchLoader(loader, 1)
    next(made.epoch(0))
    print("made", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_training(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # a worker that stays keeps the pipe open
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b"made\n"
