"""Cache of decoded images on disk: written atomically, checked when read, mapped if large."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.data.dataset import Images, Source, check_labels
from steppe.errors import InputError

_FORMAT = 4
_TARGET = ("task", "outputs", "unit")
_TEXTS = ("classes", "skipped", "note", "fingerprint")
_DAMAGES = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
SMALL = 2**26  # bytes; smaller files are read into memory, larger ones are mapped
_log = logging.getLogger(__name__)


def folder() -> Path:
    """Return the cache folder: STEPPE_CACHE, or steppe under XDG_CACHE_HOME or ~/.cache.

    Raises InputError if none of them is set and the user has no home.
    """
    if path := os.environ.get("STEPPE_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "steppe"


def expanded(path: str) -> Path:
    """Return the path with ~ replaced by the home folder; raises InputError if there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{path} is in no home: HOME is not set; set it, or STEPPE_CACHE, or give a whole path"
        ) from None


def cached(key: Any, decode: Callable[[], Source]) -> Source:
    """Return the cached result of ``decode`` for this ``key``; decode and cache it if there is none.

    ``key`` is plain data that changes whenever the files do. A damaged entry is decoded again; if the cache cannot
    be read or written, or the user has no home, the images stay in memory.
    """
    name = hashlib.sha256(json.dumps([_FORMAT, key], sort_keys=True).encode()).hexdigest()[:24]

    def decoded() -> Source:
        source = decode()
        return replace(source, fingerprint=_fingerprint(source))

    try:
        entry = folder() / "decoded" / name
    except InputError as error:
        _log.info("decoded images are not cached: %s", error)
        return decoded()
    try:
        if entry.is_dir():
            return _read(entry)
    except PermissionError as error:
        _log.warning("cannot read %s: %s; decoding again", error.filename, error.strerror)
        return decoded()
    except _DAMAGES as error:
        _log.warning("decoded images in %s are damaged (%s); decoding again", entry, error)
        shutil.rmtree(entry, ignore_errors=True)
    source = decoded()
    try:
        _write(entry, source)
        return _read(entry)
    except _DAMAGES as error:  # also one of another user, which cannot be removed
        _log.info("decoded images are not cached: cannot write %s: %s", entry, error)
        return source


def file_state(state: os.stat_result) -> list[int]:
    """Return what changes with a file's content, also if files of one size and date exchange their names."""
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _parts(source: Source) -> dict[str, Images]:
    parts = {"train": source.train, "test": source.test, "val": source.val}
    return {name: part for name, part in parts.items() if isinstance(part, Images)}


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
    # not by tempfile, whose folders are private; a cache may be shared
    temporary = entry.parent / f".writing-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        for part, images in _parts(source).items():
            np.save(temporary / f"{part}_x.npy", images.x.numpy())
            np.save(temporary / f"{part}_y.npy", images.y.numpy())
        content = {name: getattr(source, name) for name in (*_TEXTS, *_TARGET)}
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
        if y.ndim == 1:
            check_labels(y, len(content["classes"]), f"{name}_y.npy")
        file = entry / f"{name}_x.npy"
        if file.stat().st_size < SMALL:
            return Images(torch.from_numpy(np.load(file, allow_pickle=False)), torch.from_numpy(y))
        return Images.mapped(file, torch.from_numpy(y))

    names, skipped, note, fingerprint = (content[name] for name in _TEXTS)
    val = part("val") if "val_x.npy" in content["sizes"] else None
    target = {name: content[name] for name in _TARGET if name in content}  # entries of older versions have none
    return Source(part("train"), part("test"), tuple(names), tuple(skipped), note, val, fingerprint, **target)
