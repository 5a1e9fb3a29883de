"""Pixels of one image file, read as the file describes them.

It is also a program that decodes what it is sent (see `steppe.data.sources._decoders`), so it imports nothing of
the package: a process starts in a tenth of the time that torch takes to be imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import signal
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

RESIZE = Image.Resampling.BILINEAR  # antialiased by Pillow
# Pillow goes by content, not by name, and runs other programs for some formats; only these are allowed
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 2**28  # of one image: 268 megapixels, more than any camera has
_LARGE = 2**25  # pixels; larger images are decoded one at a time, for the memory
_LONG_JPEG = (
    89_478_485  # pixels, Pillow's own limit; a longer JPEG is decoded at a reduced scale if a size is given
)
_GROUND = 128  # grey behind transparent pixels: neither a black nor a white drawing vanishes on it
_ORIENTATION, _NO_DATA = 0x0112, 42113  # tags; GDAL's has the value of pixels that were not measured
UNKNOWN, TOO_LARGE = "unknown image format", "larger than any image"
# what is reported about images, with their number
REMARKS = {
    "turned": "turned upright by their EXIF orientation",
    "transparent": f"with transparent pixels, laid on grey ({_GROUND}), on white if they are all grey",
    "frames": "with several frames or pages, of which the first is used",
    "colour16": "in 16-bit colour, of which the upper 8 bits are used",
}
_one_at_a_time: contextlib.AbstractContextManager[Any] = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """An image file: its path inside the folder, its pixels (H, W, 1 or 3), or the ``reason`` for none.

    Pixels are uint8; those of grey images of more than 8 bits are float32 until `to_8_bits`. ``remarks`` are keys
    of `REMARKS`.
    """

    name: str
    pixels: np.ndarray | None
    reason: str = ""
    remarks: tuple[str, ...] = ()


@contextlib.contextmanager
def pillow_limits() -> Iterator[None]:
    """Let Pillow open images of up to ``MOST_PIXELS`` and ignore its warnings, in all threads of the process."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def decode_one(name: str, content: bytes | OSError, size: int | None) -> Decoded:
    """Return the first frame of an image file, upright, resized to ``size`` pixels if given."""
    if isinstance(content, OSError):
        return Decoded(name, None, content.strerror or type(content).__name__)
    try:
        try:
            return _decode(name, content, size)
        except ValueError:  # Pillow's limit for texts and colour profiles, which are not needed
            if not content.startswith(b"\x89PNG"):
                raise
            return _decode(name, _without_texts(content), size)
    except UnidentifiedImageError:
        return Decoded(name, None, _missing_decoder(content) or UNKNOWN)
    except Image.DecompressionBombError:
        return Decoded(name, None, f"more than {MOST_PIXELS:,} pixels")
    except Exception as error:  # Pillow's decoders may raise any exception
        return Decoded(name, None, next(iter(str(error).splitlines()), type(error).__name__))


def to_8_bits(images: list[Decoded]) -> tuple[list[Decoded], str]:
    """Return the images with all pixels as uint8, and a note on what became of deeper grey images.

    One linear map holds for all of them: their smallest value becomes 0, their largest 255. So equal values stay
    equal between files. If all values are equal, 0 becomes 0.
    """
    deep = [d.pixels for d in images if d.pixels is not None and d.pixels.dtype != np.uint8]
    if not deep:
        return images, ""
    low, high = min(float(p.min()) for p in deep), max(float(p.max()) for p in deep)
    if low == high:
        low = min(low, 0.0)
    scale = 255 / (high - low) if high > low else 0.0

    def convert(d: Decoded) -> Decoded:
        if d.pixels is None or d.pixels.dtype == np.uint8:
            return d
        pixels = ((d.pixels.astype(np.float64) - low) * scale).round().astype(np.uint8)
        return Decoded(d.name, pixels, d.reason, d.remarks)

    note = f"{len(deep)} of more than 8 bits, whose values {low:g} to {high:g} become 0 to 255"
    return [convert(d) for d in images], note


def _decode(name: str, content: bytes, size: int | None) -> Decoded:
    with Image.open(io.BytesIO(content), formats=_formats(content)) as image:
        count = image.width * image.height
        if count > MOST_PIXELS:
            return Decoded(name, None, f"more than {MOST_PIXELS:,} pixels")
        if count <= _LARGE and _is_plain(image):
            return Decoded(name, _as_array(image, size))
        with _one_at_a_time if count > _LARGE else contextlib.nullcontext():
            if count > _LONG_JPEG and size is not None:
                image.draft(None, (4 * size, 4 * size))
            return Decoded(name, *_pixels(image, size))


def _is_plain(image: Image.Image) -> bool:
    """Return whether an image is as most JPEG files are: grey or RGB without orientation; checks cost time."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and image.info.keys().isdisjoint(("exif", "xmp"))


def _as_array(image: Image.Image, size: int | None) -> np.ndarray:
    """Return the pixels (H, W, 1 or 3), resized to ``size`` if given."""
    pixels = np.asarray(image if size is None else image.resize((size, size), RESIZE))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _pixels(image: Image.Image, size: int | None) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Return the pixels (H, W, 1 or 3), no reason, and the remarks."""
    remarks = ["colour16"] if ";16" in repr(getattr(image, "tile", "")) and not image.mode.startswith("I") else []
    orientation = 1
    with contextlib.suppress(Exception):  # EXIF may be damaged where the pixels are sound
        orientation = image.getexif().get(_ORIENTATION, 1)
    image.load()
    upright = image
    if orientation in range(2, 9):
        remarks.append("turned")
        with contextlib.suppress(Exception):
            upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        values = np.array(upright, np.float32)
        with contextlib.suppress(ValueError):
            no_data = str(getattr(image, "tag_v2", {}).get(_NO_DATA, "nan"))
            values[values == np.float32(no_data.strip(" \0"))] = np.nan
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        upright = Image.fromarray(np.nan_to_num(values, nan=low, posinf=high, neginf=low))
    elif upright.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
        upright, is_transparent = _on_ground(upright)
        remarks += ["transparent"] if is_transparent else []
    elif upright.mode not in ("L", "RGB"):
        upright = upright.convert("L" if upright.mode == "1" else "RGB")
    pixels = _as_array(upright, size)
    if image.format not in ("JPEG", "MPO"):  # the further images of a multi-picture JPEG are previews and depths
        with contextlib.suppress(Exception):  # a later frame may be damaged
            remarks += ["frames"] if getattr(image, "is_animated", False) else []
    return pixels, "", tuple(remarks)


def _on_ground(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return a grey or RGB image on the grey ground, and whether any pixel is transparent.

    The ground is white for a drawing that the grey one would hide.
    """
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    rgba = image.convert("RGBA")
    if np.asarray(rgba.getchannel("A")).min(initial=255) == 255:
        return rgba.convert(mode), False

    def on(value: int) -> Image.Image:
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (value, value, value, 255)), rgba)

    flat = on(_GROUND).convert(mode)
    is_hidden = np.abs(np.asarray(flat, np.int16) - _GROUND).max() <= 16
    return on(255).convert(mode) if is_hidden else flat, True


def _without_texts(content: bytes) -> bytes:
    """Return a PNG file without its texts and colour profile."""
    parts, at = [content[:8]], 8
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def _formats(content: bytes) -> tuple[str, ...]:
    if content[4:8] != b"ftyp":
        return _FORMATS
    if content[8:12] in (b"avif", b"avis"):
        return ("AVIF",) if features.check("avif") else _FORMATS
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return _FORMATS
    return ("HEIF",)


def _missing_decoder(content: bytes) -> str:
    """Return how to make a file readable for which a decoder is missing."""
    if content[4:8] != b"ftyp" or _formats(content) != _FORMATS:
        return ""
    is_avif = content[8:12] in (b"avif", b"avis")
    return "AVIF needs pip install 'pillow>=11.3'" if is_avif else "HEIC needs pip install pillow-heif"


class _LargeError(BaseException):
    """An image is large; it is left to the process that decodes one such image at a time."""


class _Refusal(contextlib.AbstractContextManager[None]):
    """Takes the place of the lock in a process that decodes no large images."""

    def __enter__(self) -> None:
        raise _LargeError

    def __exit__(self, *error: object) -> None:
        pass


def _serve() -> None:
    """Decode groups of images from standard input until it ends.

    A group is pickled as its images (name, content) and the size. The answer is a list of the fields of `Decoded`,
    with None for a large image. An empty answer comes first: the process is ready.
    """
    global _one_at_a_time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    _one_at_a_time = _Refusal()
    # what libraries print must not get among the answers
    with os.fdopen(os.dup(1), "wb") as answers, pillow_limits():
        os.dup2(2, 1)

        def answer(content: list[tuple[Any, ...] | None]) -> None:
            pickle.dump(content, answers, protocol=5)
            answers.flush()

        def fields(name: str, content: bytes | OSError, size: int | None) -> tuple[Any, ...] | None:
            try:
                image = decode_one(name, content, size)
            except _LargeError:
                return None
            return image.name, image.pixels, image.reason, image.remarks

        answer([])
        with contextlib.suppress(EOFError):
            while True:
                group, size = pickle.load(sys.stdin.buffer)
                answer([fields(name, content, size) for name, content in group])


if __name__ == "__main__":
    _serve()
