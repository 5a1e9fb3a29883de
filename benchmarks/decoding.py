"""Processor time of the command until the images of an archive are at hand, which no further core takes over.

They are decoded in threads, or by processes whose time does not count, or read from the cache.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
from PIL import Image

from steppe import data
from steppe.bench.timing import TimingSpread, alternating, at_least_one, no_progress, spread
from steppe.config import Data
from steppe.data.sources import _image_files

_COUNT = 20_000  # images of the archive that is made if none is named
THREADS, PROCESSES, CACHE = "threads only", "a process per core", "cache"


@dataclass(frozen=True)
class DecodingCost:
    """Processor time to load a data set in one way: over that with threads only, and in seconds."""

    way: str
    of_threads: TimingSpread
    seconds: float


def decoding_cost(
    archive: Path | None, *, repeats: int, count: int = _COUNT, progress: Callable[[int], None] = no_progress
) -> list[DecodingCost]:
    """Return what loading an archive of images costs, by default one of ``count`` JPEG files of 32x32."""
    at_least_one(repeats=repeats)
    with tempfile.TemporaryDirectory() as folder:
        path = archive or _archive_of(Path(folder) / "images.tar", count)
        ways = {
            THREADS: partial(_seconds, path, Path(folder), in_threads=2**62, cached=False),
            PROCESSES: partial(_seconds, path, Path(folder), in_threads=_image_files._IN_THREADS, cached=False),
            CACHE: partial(_seconds, path, Path(folder), in_threads=0, cached=True),
        }
        ways[PROCESSES]()  # which fills the cache
        times = alternating(ways, repeats, progress)
    return [DecodingCost(way, spread(t, times[THREADS]), median(t)) for way, t in times.items()]


def _seconds(path: Path, folder: Path, *, in_threads: int, cached: bool) -> float:
    with _cache_in(folder / "cache" if cached else Path(tempfile.mkdtemp(dir=folder))):
        if cached:
            data.load(f"folder:{path}", Data())
        start = time.process_time()
        with patch.object(_image_files, "_IN_THREADS", in_threads):
            data.load(f"folder:{path}", Data())
        return time.process_time() - start


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    with patch.dict(os.environ, {"STEPPE_CACHE": str(folder)}):
        yield


def _archive_of(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            content = io.BytesIO()
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((32, 32)).save(content, "JPEG")
            member = tarfile.TarInfo(f"{'cat' if i % 2 else 'dog'}/{i}.jpg")
            member.size = content.tell()
            archive.addfile(member, io.BytesIO(content.getvalue()))
    return path
