"""The files of a folder or an archive: read in sequence, images decoded in parallel.

Archives are read as a stream and never unpacked, so a malicious name cannot write anywhere: names are used only as
labels. Devices and names that leave the folder are not read. Whatever is not read is counted.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from steppe.data.sources import _archive_links
from steppe.data.sources._part_names import part_of
from steppe.data.sources.pixels import TOO_LARGE, Decoded, decode_one, pillow_limits
from steppe.errors import InputError

IMAGES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".avif", ".heic", ".heif",
)  # fmt: skip
TABLES = (".csv", ".tsv")
_TEXTS = (
    ".txt",
    ".md",
    ".json",
    ".xml",
    ".yaml",
    ".yml",
    ".html",
    ".pdf",
    ".mat",
    ".old",
    ".log",
    ".py",
    ".ipynb",
)
# text files that may be lists of images, by the words in their names; others are not opened
_LISTS = {"images", "image", "labels", "label", "classes", "split", "list", "partition", "annotations", "files"}
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
# what systems leave in shared, mounted and unzipped folders; names that begin with a dot belong to them too
_SYSTEM = (
    "__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "#recycle", "#snapshot",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
)  # fmt: skip
_LARGEST = 2**28  # bytes of an image file, whatever size a file or archive claims
_CHUNK = 1024  # encoded images in memory at a time
_GROUP = 32  # images that a thread takes at a time: for single small images the overhead exceeds the decoding

ProgressCallback = Callable[[int, int], None]


def is_image(name: str) -> bool:
    """Return whether a file may be an image, by its name; one without an ending may be."""
    return name.lower().endswith(IMAGES) or not PurePosixPath(name).suffix


def is_table(name: str) -> bool:
    """Return whether a file may be a table or a list of images, by its name."""
    path = PurePosixPath(name)
    ending = path.suffix.lower()
    is_list = part_of(path.stem) is not None or not _LISTS.isdisjoint(re.split("[^a-z]+", path.stem.lower()))
    return ending in TABLES or ending == ".jsonl" or (ending == ".txt" and is_list)


@dataclass
class Listing:
    """Names in a folder or archive, relative to it: ``images`` (possible ones), ``tables``, and all ``folders``.

    ``filled`` are the folders that have a file of any kind in them, ``foreign`` those that have more than texts and
    tables. ``other`` counts what is not read, by kind.
    """

    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    filled: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    other: Counter[str] = field(default_factory=Counter)
    system: set[str] = field(default_factory=set)

    def add(self, name: str, is_folder: bool = False) -> bool:
        """Add a file or folder; return whether a file is to be read, or a folder to be entered."""
        path = PurePosixPath(name)
        if not path.parts:
            return True
        for i, part in enumerate(path.parts):
            if part.startswith(".") or part.lower() in _SYSTEM:
                self.system.add("/".join(path.parts[: i + 1]))
                return False
        parents = [str(p) for p in path.parents if str(p) != "."]
        self.folders.update([str(path), *parents] if is_folder else parents)
        if is_folder:
            return True
        self.filled.update(parents)
        matching = self.images if is_image(name) else self.tables if is_table(name) else None
        if matching is not self.tables and path.suffix.lower() not in _TEXTS:
            self.foreign.update(parents)
        if matching is None:
            self.other[f"{path.suffix.lower()} file"] += 1
        else:
            matching.append(str(path))
        return matching is not None


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
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    self.listing.other["outside name"] += 1
                elif member.kind == "folder":
                    self.listing.add(str(path), is_folder=True)
                elif member.kind == "link":
                    self.links[str(path)] = member.target
                elif member.kind == "device":
                    self.listing.other["device"] += 1
                elif self.listing.add(str(path)):
                    if member.size > _LARGEST and not path.suffix:
                        self.listing.other["oversized file"] += 1
                        continue
                    if member.size > _LARGEST:
                        raise ValueError(f"{path} has {member.size} bytes, more than any image")
                    content = member.read()
                    if is_table(path.name):
                        self.tables[str(path)] = content
                    else:
                        yield str(path), content
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
        for info in archive:
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


def list_files(root: Path) -> Listing:
    """Return what is below a folder; all lists are sorted.

    Linked folders are entered, except those that lead back to a folder above. A link to a file counts as that
    file; a broken link is listed, and reported as unreadable later. Pipes and devices are not read.
    """
    listing = Listing()

    def enter(folder: Path, above: frozenset[tuple[int, int]]) -> None:
        state = folder.stat()
        identity = state.st_dev, state.st_ino
        if identity in above:
            listing.folders.discard(folder.relative_to(root).as_posix())
            listing.other["circular link"] += 1
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            listing.other["unreadable folder"] += 1
            return
        for entry in entries:
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.is_symlink() and _is_circular(entry.path):
                listing.other["circular link"] += 1
            elif entry.is_dir():
                if listing.add(name, is_folder=True):
                    enter(Path(entry.path), above | {identity})
            elif entry.is_file() or not os.path.exists(entry.path):
                listing.add(name)
            else:
                listing.other["device"] += 1

    enter(root, frozenset())
    listing.images.sort()
    listing.tables.sort()
    return listing


def _is_circular(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def decode(files: ImageFiles, size: int | None) -> list[Decoded]:
    """Return all images sorted by name, resized to ``size`` pixels if given; of equal names the last is used."""

    def decode_group(group: list[tuple[str, bytes | OSError]]) -> list[Decoded]:
        return [decode_one(name, content, size) for name, content in group]

    by_name: dict[str, Decoded] = {}
    remaining = iter(files)
    with ExitStack() as stack:
        stack.enter_context(pillow_limits())
        pool = stack.enter_context(ThreadPoolExecutor())
        while chunk := list(islice(remaining, _CHUNK)):
            groups = [chunk[i : i + _GROUP] for i in range(0, len(chunk), _GROUP)]
            for images in pool.map(decode_group, groups):
                by_name.update((image.name, image) for image in images)
    for name, target in files.resolve_links(list(by_name)).items():
        by_name.setdefault(name, replace(by_name[target], name=name))
    return [by_name[name] for name in sorted(by_name)]
