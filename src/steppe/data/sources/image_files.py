"""Image files of a folder or an archive, read one after the other and decoded side by side.

Archives are read as a stream and never unpacked: names inside them are labels, not paths, so that one made to
attack has nowhere to write. Links, devices and names that climb out are passed over.
"""

from __future__ import annotations

import errno
import io
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from steppe.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# what those names stand for: Pillow goes by content, and would run other programs for some kinds
_KINDS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_LARGEST = 2**28  # bytes of an image file; a file or archive may claim any number
_CHUNK = 1024  # encoded images held in memory at a time
_GROUP = (
    32  # images that a thread takes at a time: handing them over singly costs more than a small one's decoding
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """An image file: its path inside the folder, its pixels (H, W, 1 or 3) uint8, or why it has none."""

    name: str
    pixels: np.ndarray | None
    reason: str = ""


class Files:
    """The image files of a folder or an archive; ``folders`` is complete once they have all been read.

    Iteration yields (name, content), or the OSError met on reading. ``progress`` hears how much is done of how
    much: images of a folder, bytes of an archive, whose images can only be counted by reading all of it.

    Raises InputError for an archive that cannot be read to its end.
    """

    def __init__(self, path: Path, progress: Progress | None = None):
        self.path, self.progress = path, progress or (lambda done, total: None)
        self.folders: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, bytes | OSError]]:
        return self._folder() if self.path.is_dir() else self._archive()

    def _folder(self) -> Iterator[tuple[str, bytes | OSError]]:
        names, self.folders = listing(self.path)
        for i, name in enumerate(names, 1):
            try:
                content: bytes | OSError = _content(self.path / name)
            except OSError as error:
                content = error
            yield name, content
            self.progress(i, len(names))

    def _archive(self) -> Iterator[tuple[str, bytes | OSError]]:
        total = self.path.stat().st_size
        try:
            with self.path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*", tarinfo=_Whole) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                    inner = PurePosixPath(member.name)
                    if inner.is_absolute() or any(p.startswith(".") for p in inner.parts):
                        continue
                    above = [str(p) for p in (inner, *inner.parents) if str(p) != "."]
                    if member.isdir() or member.isfile():
                        self.folders.update(above if member.isdir() else above[1:])
                    if member.isfile() and _is_image(inner.name):
                        if member.size > _LARGEST:
                            raise ValueError(f"{inner} is {member.size} bytes, more than any image")
                        file = archive.extractfile(member)
                        yield str(inner), file.read() if file else b""
                    self.progress(raw.tell(), total)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise InputError(f"archive {self.path} cannot be read ({error}); make it anew") from None


def _content(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise OSError(errno.EFBIG, "more bytes than any image has")
    return path.read_bytes()


class _Whole(tarfile.TarInfo):
    """A member whose damaged header is an error, where tarfile would take it for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Whole:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("InvalidHeaderError", "TruncatedHeaderError"):
                raise tarfile.ReadError(str(error)) from None
            raise


def listing(root: Path) -> tuple[list[str], set[str]]:
    """Return the image files and all folders below a folder, relative to it; nothing hidden.

    Linked folders are named but not entered, so that there is no loop and no way out. A link to a file counts
    as that file, even one that leads nowhere: it will be named as unreadable. Pipes and devices do not count.
    """
    names: list[str] = []
    folders: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=False):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        here = Path(folder)
        folders.update((here / s).relative_to(root).as_posix() for s in subfolders)
        names += [
            (here / name).relative_to(root).as_posix()
            for name in files
            if _is_image(name) and ((here / name).is_file() or not (here / name).exists())
        ]
    return sorted(names), folders


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def decode(files: Files, size: int | None) -> list[Decoded]:
    """Return every image by name, resized to ``size`` pixels if given; of equal names the last counts."""
    by_name: dict[str, Decoded] = {}
    remaining = iter(files)
    # the filter belongs to the process, not to a thread: set it here once and not around each image
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        while chunk := list(islice(remaining, _CHUNK)):
            groups = [chunk[i : i + _GROUP] for i in range(0, len(chunk), _GROUP)]
            for found in pool.map(lambda group: _decode_each(group, size), groups):
                by_name.update((one.name, one) for one in found)
    return [by_name[name] for name in sorted(by_name)]


def _decode_each(files: list[tuple[str, bytes | OSError]], size: int | None) -> list[Decoded]:
    return [_decode_one(name, content, size) for name, content in files]


def _decode_one(name: str, content: bytes | OSError, size: int | None) -> Decoded:
    if isinstance(content, OSError):
        return Decoded(name, None, content.strerror or type(content).__name__)
    try:
        with Image.open(io.BytesIO(content), formats=_KINDS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                return Decoded(name, None, "far too many pixels")
            return Decoded(name, _pixels(image, size))
    except UnidentifiedImageError:
        return Decoded(name, None, "no known kind of image")
    except Image.DecompressionBombError:
        return Decoded(name, None, "far too many pixels")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        return Decoded(name, None, next(iter(str(error).splitlines()), type(error).__name__))


def _pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8: the first frame, without transparency, 16 bits brought to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.nan_to_num(np.asarray(image, np.float64))
        # Pillow widens 16-bit PNG and PGM files to "I"; TIFF keeps any range there, so its values decide
        deep = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
        scale = 257 if deep or wide.max(initial=0) > 255 else 1
        image = Image.fromarray((wide / scale).clip(0, 255).round().astype(np.uint8))
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
