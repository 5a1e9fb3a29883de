"""The product with one defect planted, named by FAULTS_PLANT: ``python -m faults.broken train ...``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.command import PLANT


def fresh_noise() -> None:
    """Resume with the random streams of a run's beginning."""
    from steppe.training.checkpoint import store
    from steppe.training.checkpoint.store import CheckpointStore

    CheckpointStore._own_streams = lambda self, saved: {
        name: store.torch.Generator().manual_seed(0).get_state() for name in self._numbers()
    }


def raw_errors() -> None:
    """Let what the system refuses come out as it is."""
    from steppe import records

    @contextmanager
    def writing(path: Path) -> Iterator[None]:
        yield

    records._writing = writing


def torn_writes() -> None:
    """Write files in place."""
    from steppe import records
    from steppe.training.checkpoint import file

    def write_text(path: Path, content: str | bytes) -> None:
        with records._writing(path):
            Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    records.write_text = file.write_text = write_text


def no_checksum() -> None:
    """Take a checkpoint's tensors without looking at its checksum."""
    from steppe.training.checkpoint import file

    file._checksum = _Anything


class _Anything(str):
    """Equal to whatever it is compared with."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __new__(cls, *_: object) -> _Anything:
        return super().__new__(cls, "0" * 64)

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def forgetful() -> None:
    """Keep no checkpoint but the newest."""
    from steppe.training.checkpoint.store import CheckpointStore

    CheckpointStore._keep_before = lambda self, path: None


def unchecked() -> None:
    """Take any number for a size, a count or a rate."""
    from steppe import config

    config._positive = lambda *given, **more: None


def unlocked() -> None:
    """Let any number of commands work in one folder."""
    from steppe.experiments import comparison, run_lock, worker

    @contextmanager
    def free(*_: object) -> Iterator[None]:
        yield

    run_lock.locked_run = worker.claimed = comparison._alone = free


def wall_clock() -> None:
    """Measure a run's time by the clock on the wall."""
    import time
    from types import SimpleNamespace

    from steppe.training import trainer

    trainer.time = SimpleNamespace(perf_counter=lambda: time.time())


def open_images() -> None:
    """Let decoders' errors through."""
    from steppe.data.sources import image_files

    def one(name: str, content: bytes, size: int | None) -> Any:
        with image_files.Image.open(image_files.io.BytesIO(content)) as image:
            return image_files.Decoded(name, image_files._pixels(image, size))

    image_files._decode_one = one


def unpacked() -> None:
    """Unpack archives beside themselves, as they ask for."""
    from steppe.data.sources import image_files

    inner = image_files.ImageFiles._archive

    def archive(self: Any) -> Any:
        with image_files.tarfile.open(self.path) as held:
            held.extractall(self.path.parent / "unpacked", filter="fully_trusted")
        return inner(self)

    image_files.ImageFiles._archive = archive


def trusting() -> None:
    """Load pickles as they are, whoever made them."""
    import pickle

    from steppe.data.sources import cifar

    cifar._ArrayUnpickler.find_class = pickle.Unpickler.find_class


def unguarded() -> None:
    """Apply gradients whatever they are."""
    from steppe.core import runtime

    runtime.Runtime._judge = lambda self, bad: None


DEFECTS: dict[str, Callable[[], None]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        fresh_noise,
        raw_errors,
        torn_writes,
        no_checksum,
        forgetful,
        unchecked,
        unlocked,
        wall_clock,
        open_images,
        unpacked,
        trusting,
        unguarded,
    )
}


def says(*names: str) -> dict[str, str]:
    """Return what these defects do, by name."""
    return {name: (DEFECTS[name].__doc__ or "").rstrip(".") for name in names}


def plant(name: str) -> None:
    """Put a defect into the product, in this process."""
    DEFECTS[name]()


# a worker process imports this module again before it works, and so has the defect too
if os.environ.get(PLANT) and __name__ in ("__main__", "__mp_main__"):
    plant(os.environ[PLANT])

if __name__ == "__main__":
    from steppe.cli.main import main

    raise SystemExit(main())
