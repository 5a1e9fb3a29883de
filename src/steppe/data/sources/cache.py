"""Cache of decoded images on disk: written atomically, checked when read, mapped if large."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.data.dataset import Images, Source, check_labels

_FORMAT = 3
_TEXTS = ("classes", "skipped", "note", "fingerprint")
SMALL = 2**26  # bytes; smaller files are read into memory, larger ones are mapped
_log = logging.getLogger(__name__)


def folder() -> Path:
    """Return the cache folder: STEPPE_CACHE, or steppe under XDG_CACHE_HOME or ~/.cache."""
    if path := os.environ.get("STEPPE_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steppe"


def cached(key: Any, decode: Callable[[], Source]) -> Source:
    """Return the cached result of ``decode`` for this ``key``; decode and cache it if there is none.

    ``key`` is plain data that changes whenever the files do. A damaged entry is decoded again; if the cache cannot
    be written, the images stay in memory.
    """
    name = hashlib.sha256(json.dumps([_FORMAT, key], sort_keys=True).encode()).hexdigest()[:24]
    entry = folder() / "decoded" / name
    if entry.is_dir():
        try:
            return _read(entry)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("decoded images in %s are damaged (%s); decoding again", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
    source = decode()
    source = replace(source, fingerprint=_fingerprint(source))
    try:
        _write(entry, source)
        return _read(entry)
    except OSError as error:
        _log.info("decoded images are not cached: cannot write %s: %s", entry, error.strerror)
        return source


def _parts(source: Source) -> dict[str, Images]:
    return {"train": source.train, "test": source.test} | ({"val": source.val} if source.val is not None else {})


def _fingerprint(source: Source) -> str:
    """Return a hash of all images, their labels and the names of the classes."""
    state = hashlib.sha256(json.dumps(source.classes).encode())
    for part, images in _parts(source).items():
        x, y = images.x.contiguous().numpy(), images.y.numpy()
        state.update(f"{part} {x.shape}".encode())
        state.update(x.data)
        state.update(y.data)
    return state.hexdigest()[:16]


def _write(entry: Path, source: Source) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".writing-"))
    try:
        for part, images in _parts(source).items():
            np.save(temporary / f"{part}_x.npy", images.x.numpy())
            np.save(temporary / f"{part}_y.npy", images.y.numpy())
        content = {name: getattr(source, name) for name in _TEXTS}
        sizes = {f.name: f.stat().st_size for f in temporary.iterdir()}
        (temporary / "about.json").write_text(json.dumps(content | {"sizes": sizes}))
        os.replace(temporary, entry)
    except OSError:
        if not entry.is_dir():  # another process may have written the same content first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(entry: Path) -> Source:
    content = json.loads((entry / "about.json").read_text())
    for name, size in content["sizes"].items():
        if (entry / name).stat().st_size != size:
            raise ValueError(f"{name} has the wrong size")

    def part(name: str) -> Images:
        y = np.load(entry / f"{name}_y.npy", allow_pickle=False)
        check_labels(y, len(content["classes"]), f"{name}_y.npy")
        file = entry / f"{name}_x.npy"
        if file.stat().st_size < SMALL:
            return Images(torch.from_numpy(np.load(file, allow_pickle=False)), torch.from_numpy(y))
        return Images.mapped(file, torch.from_numpy(y))

    names, skipped, note, fingerprint = (content[name] for name in _TEXTS)
    val = part("val") if "val_x.npy" in content["sizes"] else None
    return Source(part("train"), part("test"), tuple(names), tuple(skipped), note, val, fingerprint)
