"""Image files of a folder or an archive: read in sequence, decoded in parallel.

Archives are read as a stream and never unpacked, so a malicious name cannot write anywhere: names are used only as
labels. Links, devices and names that leave the folder are skipped.
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

from steppe.data.dataset import RESIZE
from steppe.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow goes by content, not by name, and runs other programs for some formats; only these are allowed
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_LARGEST = 2**28  # bytes of an image file, whatever size a file or archive claims
_CHUNK = 1024  # encoded images in memory at a time
_GROUP = 32  # images that a thread takes at a time: for single small images the overhead exceeds the decoding

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """An image file: its path inside the folder, its pixels (H, W, 1 or 3) uint8, or the ``reason`` for none."""

    name: str
    pixels: np.ndarray | None
    reason: str = ""


class ImageFiles:
    """The image files of a folder or an archive; ``folders`` is complete once all files have been read.

    Iteration yields (name, content), or (name, OSError) if reading failed. ``progress`` is called with the amount
    done and the total: images of a folder, bytes of an archive, whose images cannot be counted in advance.

    Raises InputError for an archive that cannot be read to its end.
    """

    def __init__(self, path: Path, progress: ProgressCallback | None = None):
        self.path, self.progress = path, progress or (lambda done, total: None)
        self.folders: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, bytes | OSError]]:
        return self._folder() if self.path.is_dir() else self._archive()

    def _folder(self) -> Iterator[tuple[str, bytes | OSError]]:
        names, self.folders = list_images(self.path)
        for i, name in enumerate(names, 1):
            yield name, _content(self.path / name)
            self.progress(i, len(names))

    def _archive(self) -> Iterator[tuple[str, bytes | OSError]]:
        total = self.path.stat().st_size
        try:
            with (
                self.path.open("rb") as raw,
                tarfile.open(fileobj=raw, mode="r|*", tarinfo=_StrictTarInfo) as archive,
            ):
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # otherwise every header stays in memory
                    inner = PurePosixPath(member.name)
                    if inner.is_absolute() or any(p.startswith(".") for p in inner.parts):
                        continue
                    path_and_parents = [str(p) for p in (inner, *inner.parents) if str(p) != "."]
                    if member.isdir() or member.isfile():
                        self.folders.update(path_and_parents[0 if member.isdir() else 1 :])
                    if member.isfile() and _is_image(inner.name):
                        if member.size > _LARGEST:
                            raise ValueError(f"{inner} has {member.size} bytes, more than any image")
                        file = archive.extractfile(member)
                        yield str(inner), file.read() if file else b""
                    self.progress(raw.tell(), total)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise InputError(f"archive {self.path} cannot be read ({error}); create it again") from None


def _content(path: Path) -> bytes | OSError:
    try:
        large = path.stat().st_size > _LARGEST
        return OSError(errno.EFBIG, "larger than any image") if large else path.read_bytes()
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


def list_images(root: Path) -> tuple[list[str], set[str]]:
    """Return the image files and all folders below a folder, relative to it and without hidden ones.

    Linked folders are listed but not entered, which avoids loops. A link to a file counts as that file; a broken
    link is listed, and reported as unreadable later. Pipes and devices are skipped.
    """
    names: list[str] = []
    folders: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=False):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        parent = Path(folder)
        folders.update((parent / s).relative_to(root).as_posix() for s in subfolders)
        paths = [parent / name for name in files if _is_image(name)]
        names += [p.relative_to(root).as_posix() for p in paths if p.is_file() or not p.exists()]
    return sorted(names), folders


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def decode(files: ImageFiles, size: int | None) -> list[Decoded]:
    """Return all images sorted by name, resized to ``size`` pixels if given; of equal names the last is used."""

    def decode_group(group: list[tuple[str, bytes | OSError]]) -> list[Decoded]:
        return [_decode_one(name, content, size) for name, content in group]

    by_name: dict[str, Decoded] = {}
    remaining = iter(files)
    # the warning filter is global to the process, so it is set once and not in each thread
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        while chunk := list(islice(remaining, _CHUNK)):
            groups = [chunk[i : i + _GROUP] for i in range(0, len(chunk), _GROUP)]
            for images in pool.map(decode_group, groups):
                by_name.update((image.name, image) for image in images)
    return [by_name[name] for name in sorted(by_name)]


def _decode_one(name: str, content: bytes | OSError, size: int | None) -> Decoded:
    if isinstance(content, OSError):
        return Decoded(name, None, content.strerror or type(content).__name__)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                return Decoded(name, None, "too many pixels")
            return Decoded(name, _pixels(image, size))
    except UnidentifiedImageError:
        return Decoded(name, None, "unknown image format")
    except Image.DecompressionBombError:
        return Decoded(name, None, "too many pixels")
    except Exception as error:  # Pillow's decoders may raise any exception
        return Decoded(name, None, next(iter(str(error).splitlines()), type(error).__name__))


def _pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8: the first frame, without transparency, 16 bits scaled to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        # Pillow reads 16-bit PNG and PGM files as mode "I"; in TIFF that mode has any range, so the values decide
        is_16_bit = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
        scale = 257 if is_16_bit or values.max(initial=0) > 255 else 1
        image = Image.fromarray((values / scale).clip(0, 255).round().astype(np.uint8))
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    if size is not None:
        image = image.resize((size, size), RESIZE)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
