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
    ".txt", ".md", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf", ".mat", ".old", ".log", ".py", ".ipynb",
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
    if name.lower().endswith(".txt"):
        stem = PurePosixPath(name).stem
        return part_of(stem) is not None or not _LISTS.isdisjoint(re.split("[^a-z]+", stem.lower()))
    return name.lower().endswith((*TABLES, ".jsonl"))


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
        """Add a file or folder; return whether a file is to be read, or a folder to be entered.

        The name is relative and has no ``.`` or ``..`` in it.
        """
        if name in ("", "."):
            return True
        folder, _, last = name.rpartition("/")  # pathlib would take a tenth of the time of decoding small images
        if folder and folder not in self.folders and not self.add(folder, is_folder=True):
            return False
        if last.startswith(".") or last.lower() in _SYSTEM:
            self.system.add(name)
            return False
        if is_folder:
            self.folders.add(name)
            return True
        _add_with_parents(self.filled, folder)
        if is_table(name):
            self.tables.append(name)
            return True
        if not last.lower().endswith(_TEXTS) and "." in last:
            _add_with_parents(self.foreign, folder)
        if is_image(name):
            self.images.append(name)
            return True
        self.other[f"{PurePosixPath(last).suffix.lower()} file"] += 1
        return False


def _add_with_parents(folders: set[str], folder: str) -> None:
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def list_files(root: Path) -> Listing:
    """Return what is below a folder; all lists are sorted.

    Linked folders are entered, except those that lead back to a folder above. A link to a file counts as that
    file; a broken link is listed, and reported as unreadable later. Pipes and devices are not read.
    """
    listing = Listing()

    def enter(folder: str, above: frozenset[tuple[int, int]]) -> None:
        state = os.stat(root / folder)
        identity = state.st_dev, state.st_ino
        if identity in above:
            listing.folders.discard(folder)
            listing.other["circular link"] += 1
            return
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError:
            listing.other["unreadable folder"] += 1
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink() and _is_circular(entry.path):
                listing.other["circular link"] += 1
            elif entry.is_dir():
                if listing.add(name, is_folder=True):
                    enter(name, above | {identity})
            elif entry.is_file() or not os.path.exists(entry.path):
                listing.add(name)
            else:
                listing.other["device"] += 1

    enter("", frozenset())
    listing.images.sort()
    listing.tables.sort()
    return listing


def _is_circular(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
