"""Small copies of the images, which programs keep in a folder of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

_FOLDERS = {"thumbnail", "thumbnails", "thumb", "thumbs"}
_AFFIX = re.compile("^(thumb|thumbnail|tn)[-_. ]|[-_. ](thumb|thumbnail|tn|small|[0-9]+x[0-9]+)$")


def thumbnails(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of thumbnails among images, and the images in each.

    A folder has thumbnails if its name says so and each image in it has the name of one around it: the same path
    without the folder, or a file name that one folder alone has, and several folders have such images. Numbered
    files, which every class has, are no thumbnails: a class may be called thumbs.
    """
    inside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    rest: list[str] = []
    depths: dict[str, int | None] = {}  # by folder
    for name in names:
        folder = name.rpartition("/")[0]
        parents = tuple(folder.split("/")) if folder else ()
        if folder not in depths:
            depths[folder] = next((i for i, p in enumerate(parents) if p.strip("_ ").lower() in _FOLDERS), None)
        depth = depths[folder]
        if depth is None:
            rest.append(name)
        else:
            inside[parents[: depth + 1]].append(name)
    outside = [PurePosixPath(name) for name in rest] if inside else []
    return {"/".join(top): images for top, images in inside.items() if _are_copies(top, images, outside)}


def _are_copies(top: tuple[str, ...], images: Iterable[str], outside: Iterable[PurePosixPath]) -> bool:
    around = [p for p in outside if p.parts[: len(top) - 1] == top[:-1]]
    paths = {_key(p, len(top) - 1) for p in around}
    folders: dict[str, set[PurePosixPath]] = defaultdict(set)
    for path in around:
        folders[path.stem.lower()].add(path.parent)
    copied: set[PurePosixPath] = set()
    is_mirror = True
    for path in map(PurePosixPath, images):
        key = _key(path, len(top))
        if key in paths:
            continue
        is_mirror, places = False, folders.get(key[-1], set())
        if len(places) != 1:
            return False
        copied |= places
    return is_mirror or len(copied) > 1


def _key(path: PurePosixPath, start: int) -> tuple[str, ...]:
    return (*path.parts[start:-1], _AFFIX.sub("", path.stem.lower()))
