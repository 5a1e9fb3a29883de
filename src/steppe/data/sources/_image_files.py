"""The files of a folder or an archive: read in sequence, images decoded on all cores.

Archives are read as a stream and never unpacked, so a malicious name cannot write anywhere: names are used only as
labels. Devices and names that leave the folder are not read. Whatever is not read is counted.
"""

from __future__ import annotations

import errno
import posixpath
import stat
import tarfile
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from steppe import hardware
from steppe.data.sources import _archive_links
from steppe.data.sources._decoders import Decoder
from steppe.data.sources.listing import Listing, list_files
from steppe.data.sources.pixels import TOO_LARGE, Decoded, decode_one, pillow_limits
from steppe.errors import InputError

_LARGEST = 2**28  # bytes of an image file, whatever size a file or archive claims
_GROUP = 32  # images that a thread takes at a time: for single small images the overhead exceeds the decoding
_GROUP_BYTES = 2**20
_IN_THREADS = 1024  # images, in less time than processes take to start
_MOST_PROCESSES = 32

ProgressCallback = Callable[[int, int], None]


class ImageFiles:
    """The possible images of a folder or an archive.

    Iteration yields (name, content), or (name, OSError) if reading failed. After it ``listing`` is complete,
    ``tables`` has the content of the tables, and ``links`` the target of each link in an archive. ``progress`` is
    called with the amount done and the total: files of a folder, bytes of an archive, whose images cannot be
    counted in advance.

    Raises InputError for an archive that cannot be read to its end.
    """

    def __init__(self, path: Path, progress: ProgressCallback | None = None):
        self.path, self.progress = path, progress or (lambda done, total: None)
        self.listing = Listing()
        self.tables: dict[str, bytes] = {}
        self.links: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, bytes | OSError]]:
        return self._folder() if self.path.is_dir() else self._archive()

    def _folder(self) -> Iterator[tuple[str, bytes | OSError]]:
        self.listing = list_files(self.path)
        for name in self.listing.tables:
            content = _content(self.path / name)
            self.tables[name] = content if isinstance(content, bytes) else b""
        for i, name in enumerate(self.listing.images, 1):
            yield name, _content(self.path / name)
            self.progress(i, len(self.listing.images))

    def _archive(self) -> Iterator[tuple[str, bytes | OSError]]:
        try:
            members = _zip_members if self.path.name.lower().endswith(".zip") else _tar_members
            for member in members(self.path, self.progress):
                name = _normal(member.name)
                if name.startswith("/") or ".." in name.split("/"):
                    self.listing.other["outside name"] += 1
                elif member.kind == "folder":
                    self.listing.add(name, is_folder=True)
                elif member.kind == "link":
                    self.links[name] = member.target
                elif member.kind == "device":
                    self.listing.other["device"] += 1
                elif self.listing.add(name):
                    if member.size > _LARGEST and not PurePosixPath(name).suffix:
                        self.listing.other["oversized file"] += 1
                        continue
                    if member.size > _LARGEST:
                        raise ValueError(f"{name} has {member.size} bytes, more than any image")
                    content = member.read()
                    if self.listing.tables and self.listing.tables[-1] == name:
                        self.tables[name] = content
                    else:
                        yield name, content
        except (
            tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError
        ) as error:  # fmt: skip
            raise InputError(f"archive {self.path} cannot be read ({error}); create it again") from None

    def resolve_links(self, names: Iterable[str]) -> dict[str, str]:
        """Return the image among ``names`` that each name through a link of the archive leads to.

        Raises InputError for links that multiply the images.
        """
        if not self.links:
            return {}
        try:
            results, unfollowed = _archive_links.resolve(names, self.links)
        except ValueError as error:
            raise InputError(f"archive {self.path} cannot be read ({error}); create it without links") from None
        self.listing.other += unfollowed
        return {name: image for name, image in results.items() if self.listing.add(name)}


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; ``kind`` is file, folder, link or device, ``target`` where a link leads."""

    name: str
    kind: str
    size: int
    target: str
    read: Callable[[], bytes]


def _tar_members(path: Path, progress: ProgressCallback) -> Iterator[_Member]:
    total = path.stat().st_size
    with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*", tarinfo=_StrictTarInfo) as archive:
        for number, info in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # otherwise every header stays in memory
            kind = "file" if info.isfile() else "folder" if info.isdir() else "device"
            target = info.linkname
            if info.issym() or info.islnk():
                kind = "link"
                target = posixpath.normpath(posixpath.join("" if info.islnk() else _parent(info.name), target))

            def read(info: tarfile.TarInfo = info) -> bytes:
                file = archive.extractfile(info)
                return file.read() if file else b""

            yield _Member(info.name, kind, info.size, target, read)
            if number % _GROUP == 0:  # other threads may take the interpreter at each call of the system
                progress(raw.tell(), total)
        progress(raw.tell(), total)


def _zip_members(path: Path, progress: ProgressCallback) -> Iterator[_Member]:
    total, done = path.stat().st_size, 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")  # some programs of Windows write them
            mode, target = info.external_attr >> 16, ""
            kind = "folder" if name.endswith("/") else "file"
            if stat.S_ISLNK(mode):
                kind = "link"
                target = posixpath.normpath(posixpath.join(_parent(name), archive.read(info).decode()))
            yield _Member(name, kind, info.file_size, target, partial(archive.read, info))
            done += info.compress_size
            progress(min(done, total), total)


def _normal(name: str) -> str:
    """Return ``str(PurePosixPath(name))``, without its cost for most names."""
    is_plain = "//" not in name and "./" not in name and not name.endswith(("/", "."))
    return name if is_plain else str(PurePosixPath(name))


def _parent(name: str) -> str:
    return posixpath.dirname(str(PurePosixPath(name)))


def _content(path: Path) -> bytes | OSError:
    try:
        large = path.stat().st_size > _LARGEST
        return OSError(errno.EFBIG, TOO_LARGE) if large else path.read_bytes()
    except OSError as error:
        return error


class _StrictTarInfo(tarfile.TarInfo):
    """Raises ReadError for a damaged header, which tarfile takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("InvalidHeaderError", "TruncatedHeaderError"):
                raise tarfile.ReadError(str(error)) from None
            raise


def decode(files: ImageFiles, size: int | None) -> list[Decoded]:
    """Return all images sorted by name, resized to ``size`` pixels if given; of equal names the last is used.

    The first images are decoded in threads, which is enough for few of them, the others in a process per core.
    """
    local, workers = threading.local(), min(hardware.cores(), _MOST_PROCESSES)
    by_name: dict[str, Decoded] = {}
    decoders: list[Decoder] = []
    pending: deque[Future[list[Decoded]]] = deque()

    def decode_group(group: list[tuple[str, bytes | OSError]], number: int) -> list[Decoded]:
        if workers == 1 or number < _IN_THREADS:
            return [decode_one(name, content, size) for name, content in group]
        if not hasattr(local, "decoder"):
            local.decoder = Decoder(size)
            decoders.append(local.decoder)
        images: list[Decoded] = local.decoder(group)
        return images

    def collect(most: int) -> None:
        while len(pending) > most:
            by_name.update((image.name, image) for image in pending.popleft().result())

    with ExitStack() as stack:
        stack.enter_context(pillow_limits())
        stack.callback(lambda: deque(map(Decoder.close, decoders)))
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        count = 0
        for group in _groups(files):
            pending.append(pool.submit(decode_group, group, count))
            count += len(group)
            collect(2 * workers)
        collect(0)
    for name, target in files.resolve_links(list(by_name)).items():
        by_name.setdefault(name, replace(by_name[target], name=name))
    return [by_name[name] for name in sorted(by_name)]


def _groups(files: Iterable[tuple[str, bytes | OSError]]) -> Iterator[list[tuple[str, bytes | OSError]]]:
    """Yield the images in groups of a few, or of a few bytes."""
    group: list[tuple[str, bytes | OSError]] = []
    size = 0
    for name, content in files:
        group.append((name, content))
        size += len(content) if isinstance(content, bytes) else 0
        if len(group) == _GROUP or size > _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
