"""What a folder or archive contains, by name: possible images, tables, folders, and what is not read."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from steppe.data.sources._part_names import part_of

IMAGES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".avif", ".heic", ".heif",
)  # fmt: skip
TABLES = (".csv", ".tsv")
# files that make no class of a folder without images
_TEXTS = (
    "", ".txt", ".md", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf", ".mat", ".old", ".log", ".py", ".ipynb",
)  # fmt: skip
# text files that may be lists of images, by the words in their names; others are not opened
_LISTS = {"images", "image", "labels", "label", "classes", "split", "list", "partition", "annotations", "files"}
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
# what systems leave in shared, mounted and unzipped folders; names that begin with a dot belong to them too
_SYSTEM = (
    "__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "#recycle", "#snapshot",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
)  # fmt: skip


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

    ``filled`` are the folders that have a file of any kind in them, ``foreign`` those that have more than texts
    and tables. ``other`` counts what is not read, by kind.
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
