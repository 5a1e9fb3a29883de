"""The product with one defect planted, named by FAULTS_PLANT: ``python -m faults.broken train ...``."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faults.command import PLANT


def _replace(name: str, new: object, *owners: object) -> None:
    """Replace an attribute of these owners, or of every loaded module of the package that has it."""
    modules = [module for key, module in sys.modules.items() if key.partition(".")[0] == "steppe"]
    places = owners or [module for module in modules if name in vars(module)]
    if not places or not all(hasattr(place, name) for place in places):
        raise AttributeError(f"the package has no {name} any more")
    for place in places:
        setattr(place, name, new)


@contextmanager
def _nothing(*_: object) -> Iterator[None]:
    yield


def fresh_noise() -> None:
    """Resume with the random state of a run's beginning."""
    from steppe.training.checkpoint import save_and_resume

    def generators(self: Any, saved: Any) -> dict[str, Any]:
        return {name: save_and_resume.torch.Generator().manual_seed(0).get_state() for name in self._numbers()}

    _replace("_generators", generators, save_and_resume.CheckpointStore)


def raw_errors() -> None:
    """Do not translate the system's errors."""
    _replace("_writing", _nothing)


def torn_writes() -> None:
    """Write files in place."""
    from steppe import records

    writing = sys.modules[records.write_text.__module__]._writing

    def write_text(path: Path, content: str | bytes) -> None:
        with writing(path):
            Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    _replace("write_text", write_text)


def no_checksum() -> None:
    """Do not verify a checkpoint's checksum."""
    from steppe.training.checkpoint import file

    _replace("_checksum", _Anything, file)


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
    from steppe.training.checkpoint.save_and_resume import CheckpointStore

    _replace("_keep_before", lambda self, path: None, CheckpointStore)


def unchecked() -> None:
    """Take any number for a size, a count or a rate."""
    _replace("check_positive", lambda *arguments, **options: None)


def unlocked() -> None:
    """Do not lock a folder."""
    from steppe.experiments import comparison

    _replace("locked_run", _nothing)
    _replace("_lock", _nothing, comparison)


def wall_clock() -> None:
    """Measure a run's time by the wall clock."""
    from steppe.training import trainer

    _replace("time", SimpleNamespace(perf_counter=lambda: time.time()), trainer)


def open_images() -> None:
    """Do not catch the decoders' errors."""
    from steppe.data.sources import _image_files, pixels

    def one(name: str, content: bytes, size: int | None) -> Any:
        with pixels.Image.open(pixels.io.BytesIO(content)) as image:
            return pixels.Decoded(name, *pixels._pixels(image, size))

    _replace("decode_one", one, _image_files)


def unpacked() -> None:
    """Unpack archives to the paths that they name."""
    from steppe.data.sources import _image_files

    inner = _image_files.ImageFiles._archive

    def archive(self: Any) -> Any:
        with _image_files.tarfile.open(self.path) as members:
            members.extractall(self.path.parent / "unpacked", filter="fully_trusted")
        return inner(self)

    _replace("_archive", archive, _image_files.ImageFiles)


def trusting() -> None:
    """Load pickles without restrictions."""
    from steppe.data.sources import cifar

    _replace("find_class", pickle.Unpickler.find_class, cifar._ArrayUnpickler)


def unguarded() -> None:
    """Apply gradients that are not finite."""
    from steppe.core.runtime import Runtime

    _replace("check_finite", lambda self, *numbers: None, Runtime)


def exact_parts() -> None:
    """Know the parts of a data set by their exact names only."""
    _replace("part_of", lambda name: (name, ()) if name in ("train", "val", "test", "eval") else None)


def exif_ignored() -> None:
    """Leave photos as they lie, whatever their EXIF orientation."""
    from steppe.data.sources import pixels

    _replace("ImageOps", SimpleNamespace(exif_transpose=lambda image: image), pixels)


def by_length() -> None:
    """Weigh micro-batches by len(x)."""
    from steppe.core.batch import Batch

    _replace("__len__", lambda self: len(self.x), Batch)


def own_keys() -> None:
    """Take an optimizer's own keys for settings of the method."""
    from steppe.core import param_groups

    _replace("check_setting", lambda optimizer, name: name in optimizer.param_groups[0], param_groups)


def long_sockets() -> None:
    """Place sockets in TMPDIR, however long its path is."""
    _replace("_shorten_socket_paths", lambda: None)


_FUNCTIONS = (
    exact_parts, exif_ignored, by_length, own_keys, long_sockets, fresh_noise, raw_errors, torn_writes,
    no_checksum, forgetful, unchecked, unlocked, wall_clock, open_images, unpacked, trusting, unguarded,
)  # fmt: skip
DEFECTS: dict[str, Callable[[], None]] = {f.__name__.replace("_", "-"): f for f in _FUNCTIONS}


def says(*names: str) -> dict[str, str]:
    """Return what these defects do, by name."""
    return {name: (DEFECTS[name].__doc__ or "").rstrip(".") for name in names}


def plant(name: str) -> None:
    """Put a defect into the product, in this process."""
    import steppe.cli.main
    import steppe.experiments.worker
    import steppe.training.run  # noqa: F401

    DEFECTS[name]()


# a worker process imports this module again before it works, and so has the defect too
if os.environ.get(PLANT) and __name__ in ("__main__", "__mp_main__"):
    plant(os.environ[PLANT])

if __name__ == "__main__":
    from steppe.cli.main import main

    raise SystemExit(main())
