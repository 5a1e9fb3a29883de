"""Pixels in the forms that files have: orientations, depths, palettes, transparency, print colours, long texts.

What a file shows is computed from what was drawn, without an image library.
"""

import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from faults.classes.pictures import _chunk, encoded
from faults.outcome import Case, Where, compared

SIDE = 16
GROUND = 128
# for each EXIF orientation, how an upright picture is stored
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
LOSSY = 24  # largest error of a JPEG of even squares


@dataclass
class Drawn:
    """A file and the values that it shows (H, W, 1 or 3), deep ones before they are scaled to 8 bits."""

    name: str
    content: bytes
    shows: np.ndarray
    tolerance: int = 0
    transparent: bool = False
    turned: bool = False

    @property
    def deep(self) -> bool:
        return self.shows.dtype != np.uint8


def squares(r: random.Random, channels: int, top: int = 255) -> np.ndarray:
    """Return even squares of 8 pixels; no two orientations of them are alike."""
    noise = np.random.default_rng(r.randrange(2**31))
    small = noise.permutation(np.linspace(0, top, 4 * channels).astype(np.int64)).reshape(2, 2, channels)
    return small.repeat(SIDE // 2, 0).repeat(SIDE // 2, 1)


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def raw_png(pixels: np.ndarray, depth: int, colour: int, r: random.Random, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of these values (H, W, C), written as its specification says."""
    pixels = np.ascontiguousarray(pixels)
    height, width, _ = pixels.shape
    if depth == 16:
        rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = pixels.astype(np.uint8).reshape(height, -1)
    else:
        bits = (pixels.reshape(height, width, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    pieces = [data[i : i + 100] for i in range(0, len(data), 100)] if r.random() < 0.3 else [data]
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    chunks = b"".join(_chunk(kind, content) for kind, content in more)
    body = b"".join(_chunk(b"IDAT", piece) for piece in pieces)
    return b"\x89PNG\r\n\x1a\n" + head + chunks + body + _chunk(b"IEND", b"")


def texts(r: random.Random) -> list[tuple[bytes, bytes]]:
    """Return chunks that say nothing about the pixels: none, a short one, or longer ones than Pillow reads."""
    long = bytes(2**21)
    return r.choice(
        (
            [],
            [],
            [(b"tEXt", b"Software\0x")],
            [(b"zTXt", b"workflow\0\0" + zlib.compress(long))],
            [(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(long))],
            [(b"iCCP", b"profile\0\0" + zlib.compress(long))],
        )
    )


def png_file(r: random.Random, orientation: int) -> Drawn:
    """Draw a PNG file of any depth and colour type."""
    colour, depth = r.choice(
        (
            (0, 1),
            (0, 2),
            (0, 4),
            (0, 8),
            (0, 16),
            (2, 8),
            (2, 16),
            (3, 1),
            (3, 2),
            (3, 4),
            (3, 8),
            (4, 8),
            (6, 8),
            (6, 16),
        )
    )
    channels = {0: 1, 2: 3, 3: 1, 4: 1, 6: 3}[colour]
    pixels = squares(r, channels, 2**depth - 1)
    name, chunks, clear = f"PNG {depth} bits, type {colour}", texts(r), False
    if orientation > 1:
        chunks.append((b"eXIf", exif_of(orientation).removeprefix(b"Exif\0\0")))
    shows = pixels if depth in (8, 16) else pixels * 255 // (2**depth - 1)
    if colour == 3:
        table = np.random.default_rng(r.randrange(2**31)).integers(0, 256, (2**depth, 3))
        chunks.append((b"PLTE", table.astype(np.uint8).tobytes()))
        shows = table[pixels[..., 0]]
        if r.random() < 0.4:
            alpha = np.full(2**depth, 255)
            alpha[pixels[0, 0, 0]] = r.choice((0, 100))
            chunks.append((b"tRNS", alpha.astype(np.uint8).tobytes()))
            shows, clear = on_ground(shows, alpha[pixels[..., 0]][..., None]), True
    elif colour in (4, 6):
        alpha = np.full((SIDE, SIDE, 1), 2**depth - 1)
        alpha[: r.choice((0, 3, 5, SIDE))] = r.choice((0, 2 ** (depth - 1)))
        pixels = np.concatenate([pixels, alpha], 2)
    if depth == 16 and colour:
        shows, name = pixels[..., :channels] >> 8, f"{name}, upper half"
    if colour in (4, 6):
        opaque = alpha >> (depth - 8)
        shows = on_ground(shows, opaque)
        clear = bool(opaque.min() < 255)
    deep = depth == 16 and colour == 0
    content = raw_png(STORED[orientation](pixels), depth, colour, r, *chunks)
    shows = shows.astype(np.float64 if deep else np.uint8)
    return Drawn(name, content, shows, 2 if clear else 0, clear, orientation > 1)


def on_ground(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay values on grey; on white where the grey hides all of them."""
    share = alpha / 255
    grey = values * share + GROUND * (1 - share)
    if alpha.min() < 255 and np.abs(grey - GROUND).max() <= 16:
        return np.rint(values * share + 255 * (1 - share))
    return np.rint(grey)


def tiff_file(r: random.Random, orientation: int) -> Drawn:
    """Draw a TIFF file: grey of 8, 12, 16 or 32 bits, floating point, colour, print colours."""
    kind = r.choice(("8", "12", "16", "16 big-endian", "32", "signed", "unit", "float", "nan", "rgb", "cmyk", "1"))
    pixels = squares(r, 3 if kind == "rgb" else 4 if kind == "cmyk" else 1)
    shows, mode, tolerance = pixels, None, 0
    if kind in ("8", "rgb"):
        stored = pixels.astype(np.uint8)
    elif kind == "1":
        stored = shows = pixels // 128 * 255
        stored, mode = stored.astype(np.uint8), "1"
    elif kind == "cmyk":
        stored, mode, tolerance = pixels.astype(np.uint8), "CMYK", 2
        shows = np.rint((255 - pixels[..., :3]) * (255 - pixels[..., 3:]) / 255)
    else:
        scale, low = {
            "12": (4095, 0), "16": (65535, 0), "16 big-endian": (65535, 0), "32": (2**20, 0),
            "signed": (3000, -1500), "unit": (1, 0), "float": (77.5, 290), "nan": (2, -1),
        }[kind]  # fmt: skip
        shows = pixels / 255 * scale + low
        if kind in ("unit", "float", "nan"):
            stored = shows.astype(np.float32)
            shows = stored.astype(np.float64)
            if kind == "nan":
                stored = stored.copy()
                stored[0, 0] = np.nan
                shows[0, 0] = shows.min()
        else:
            shows = np.rint(shows)
            stored = shows.astype(np.uint16 if low == 0 and scale < 2**16 else np.int32)
    turned = np.ascontiguousarray(STORED[orientation](stored))
    image = Image.fromarray(turned[:, :, 0] if turned.shape[2] == 1 else turned, mode if mode == "CMYK" else None)
    if mode == "1":
        image = image.convert("1")
    if kind == "16 big-endian":
        image = Image.frombytes("I;16B", image.size, turned[:, :, 0].astype(">u2").tobytes())
    packing = r.choice((None, "tiff_lzw", "tiff_adobe_deflate")) if kind != "16 big-endian" else None
    content = encoded(image, "TIFF", exif=exif_of(orientation), compression=packing)
    deep = kind not in ("8", "rgb", "cmyk", "1")
    shows = shows.astype(np.float64 if deep else np.uint8)
    return Drawn(f"TIFF {kind}", content, shows, tolerance, turned=orientation > 1)


def other_file(r: random.Random, orientation: int) -> Drawn:
    """Draw a JPEG, WebP, BMP, GIF or netpbm file."""
    kind = r.choice(
        ("JPEG", "JPEG", "JPEG grey", "JPEG CMYK", "WEBP", "WEBP alpha", "BMP", "GIF", "PPM", "PGM 12")
    )
    channels = 1 if kind in ("JPEG grey", "PGM 12") else 3
    orientation = orientation if kind.startswith(("JPEG", "WEBP")) else 1  # the other formats have none
    pixels = squares(r, channels)
    shows = pixels
    stored = np.ascontiguousarray(STORED[orientation](pixels)).astype(np.uint8)
    exif = {"exif": exif_of(orientation)} if orientation > 1 else {}
    if kind == "PGM 12":
        deep = np.rint(pixels[..., 0] / 255 * 4095).astype(">u2")
        content = f"P5\n# of a camera\n{SIDE} {SIDE}\n4095\n".encode() + deep.tobytes()
        # a value is a share of the file's own maximum
        return Drawn(kind, content, np.rint(deep[..., None] / 4095 * 65535))
    image = Image.fromarray(stored[..., 0] if channels == 1 else stored)
    if kind == "JPEG CMYK":
        image = image.convert("CMYK")
    if kind == "WEBP alpha":
        alpha = np.full((SIDE, SIDE, 1), 255)
        alpha[:5] = 60
        shows = on_ground(pixels, alpha)
        whole = np.concatenate([pixels, alpha], 2)
        image = Image.fromarray(np.ascontiguousarray(STORED[orientation](whole)).astype(np.uint8))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}.get(
        kind.split()[0], {}
    )
    content = encoded(image, kind.split()[0], **options, **exif)
    clear = kind == "WEBP alpha"
    tolerance = LOSSY if kind.startswith("JPEG") else 2 if clear else 0
    return Drawn(kind, content, shows.astype(np.uint8), tolerance, clear, orientation > 1)


def situation(name: str, r: random.Random, where: Where) -> Case:
    """Draw one to three files and plain ones, read the folder, and compare the pixels."""
    from steppe.config import Data
    from steppe.data.sources import image_folder
    from steppe.errors import InputError

    root = where.scratch / name.replace(" ", "-")
    drawn = [
        r.choice((png_file, png_file, tiff_file, other_file))(r, r.choice((1, *STORED)))
        for _ in range(r.choice((1, 1, 2, 3)))
    ]
    plain = squares(r, r.choice((1, 3))).astype(np.uint8)
    drawn.append(Drawn("plain", encoded(Image.fromarray(plain.squeeze()), "PNG"), plain))
    for folder, files in (
        ("train/cat", drawn),
        ("train/dog", drawn[-1:]),
        ("test/cat", drawn[-1:]),
        ("test/dog", drawn[-1:]),
    ):
        (root / folder).mkdir(parents=True)
        for i, one in enumerate(files):
            (root / folder / f"{i}.{r.choice(('png', 'jpg', 'tif'))}").write_bytes(one.content)
    name = f"{name}: {'; '.join(one.name + ', turned' * one.turned for one in drawn[:-1])}"
    try:
        source = image_folder.load(root, Data())
    except InputError as error:
        return Case(name, "lost", f"refused: {error}")
    except Exception as error:
        return Case(name, "traceback", f"{type(error).__name__}: {error}"[:200])
    return compared(name, difference(drawn, source.train.x[: len(drawn)].numpy(), source.note))


def difference(drawn: list[Drawn], read: np.ndarray, note: str) -> str | None:
    """Say in what the pixels (N, C, H, W) differ from those that were drawn, None if in nothing."""
    deep = [one.shows for one in drawn if one.deep]
    low, high = (min(a.min() for a in deep), max(a.max() for a in deep)) if deep else (0.0, 1.0)
    channels = max(one.shows.shape[2] for one in drawn)
    if read.shape[1] != channels:
        return f"{read.shape[1]} channels for {channels}"
    for one, pixels in zip(drawn, read, strict=True):
        shows = np.rint((one.shows - low) / (high - low) * 255) if one.deep else one.shows
        error = np.abs(pixels.transpose(1, 2, 0) - shows.astype(np.float64)).max()
        if error > max(one.tolerance, int(one.deep)):
            return f"{one.name}: pixels differ by {error:.0f}"
    for what, count in (
        ("turned upright", sum(one.turned for one in drawn)),
        ("with transparent pixels", sum(one.transparent for one in drawn)),
    ):
        noted = re.findall(rf"(\d+) {what}", note)
        if int((noted or ["0"])[0]) != count:
            return f"{noted} {what} for {count}"
    return None
