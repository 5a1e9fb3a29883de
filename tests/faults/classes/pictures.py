"""Folders and archives of images as the world sends them: odd, damaged, hostile. All of them are generated."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faults.classes.damage import flipped
from PIL import Image

Spoil = Callable[[Path, random.Random], None]
HUGE = 20 * 2**30  # bytes, more than there is memory for


def noise(r: random.Random, side: int = 20) -> np.ndarray:
    return np.random.default_rng(r.randrange(2**31)).integers(0, 256, (side, side, 3), dtype=np.uint8)


def sound(root: Path, r: random.Random) -> Path:
    """Make two classes of ten small pictures."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(noise(r)).save(root / name / f"{i}.png")
    return root


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body: bytes = b"", *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file that claims a size, with chunks of one's own."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = b"".join(_chunk(kind, data) for kind, data in more)
    return b"\x89PNG\r\n\x1a\n" + head + chunks + _chunk(b"IDAT", zlib.compress(body)) + _chunk(b"IEND", b"")


def contents(r: random.Random) -> dict[str, bytes]:
    """Return the content of odd image files by name."""
    image = Image.fromarray(noise(r))
    wide = Image.fromarray((np.arange(400).reshape(20, 20) * 163).astype(np.uint16))
    whole = encoded(image, "PNG")
    return {
        "claims-billions.png": png(100_000, 100_000, bytes(50)),
        "claims-most.png": png(2**31 - 1, 2**31 - 1),
        "no-size.png": png(0, 0),
        "one-row.png": encoded(Image.fromarray(noise(r)[:1]), "PNG"),
        "one-pixel.png": encoded(Image.fromarray(noise(r)[:1, :1]), "PNG"),
        "large.png": encoded(Image.new("RGB", (3000, 3000)), "PNG"),
        "text-bomb.png": png(20, 20, bytes(20 * 61), (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "animated.gif": encoded(image.convert("P"), "GIF", save_all=True, append_images=[image.convert("P")] * 3),
        "animated.webp": encoded(image, "WEBP", save_all=True, append_images=[image] * 3),
        "deep.png": encoded(wide, "PNG"),
        "deep.tif": encoded(wide, "TIFF"),
        "float.tif": encoded(Image.fromarray(np.full((20, 20), np.nan, np.float32)), "TIFF"),
        "bits.png": encoded(image.convert("1"), "PNG"),
        "grey-alpha.png": encoded(image.convert("LA"), "PNG"),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "lab.tif": encoded(image.convert("LAB"), "TIFF"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "empty.png": b"",
        "text.png": b"not an image",
        "cut.png": whole[: r.randrange(1, len(whole))],
        "cut.jpg": encoded(image, "JPEG")[:-40],
        "flipped.png": flipped(whole, r),
        "page.gif": b"<html>404</html>",
        "code.jpg": b"#!/bin/sh\ntouch attacked\n",
        "script.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(attacked) (w) file closefile\n",
        "wrong-end.jpg": whole,
        "upper.PNG": whole,
    }


def _file(root: Path, r: random.Random) -> None:
    name, content = r.choice(sorted(contents(r).items()))
    (root / r.choice(("cat", "dog")) / name).write_bytes(content)


def _loop(root: Path, r: random.Random) -> None:
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog" / "self.png").symlink_to("self.png")


def _nowhere(root: Path, r: random.Random) -> None:
    (root / "cat" / "gone.png").symlink_to("/nowhere/gone.png")


def _outward(root: Path, r: random.Random) -> None:
    (root / "out").symlink_to("/etc")
    (root / "cat" / "passwd.png").symlink_to("/etc/passwd")


def _pipe(root: Path, r: random.Random) -> None:
    os.mkfifo(root / "cat" / "pipe.png")


def _folder_as_image(root: Path, r: random.Random) -> None:
    (root / "cat" / "folder.png").mkdir()


def _not_text(root: Path, r: random.Random) -> None:
    name = os.fsencode(root / "cat") + r.choice(
        (b"/\xff\xfe.png", b"/caf\xe9.png", b"/a\nb.png", b"/\xe2\x80\xae.png")
    )
    Path(os.fsdecode(name)).write_bytes(encoded(Image.fromarray(noise(r)), "PNG"))


def _class_not_text(root: Path, r: random.Random) -> None:
    folder = Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe"))
    folder.mkdir()
    for i in range(10):
        Image.fromarray(noise(r)).save(folder / f"{i}.png")


def _long_name(root: Path, r: random.Random) -> None:
    (root / "cat" / ("x" * 251 + ".png")).write_bytes(encoded(Image.fromarray(noise(r)), "PNG"))


def _empty_class(root: Path, r: random.Random) -> None:
    (root / "bird").mkdir()


def _one_class(root: Path, r: random.Random) -> None:
    for path in (root / "dog").iterdir():
        path.unlink()
    (root / "dog").rmdir()


def _sparse(root: Path, r: random.Random) -> None:
    with (root / "cat" / "sparse.png").open("wb") as file:
        file.truncate(HUGE)


def _strays(root: Path, r: random.Random) -> None:
    (root / "stray.png").write_bytes(encoded(Image.fromarray(noise(r)), "PNG"))
    (root / ".hidden").mkdir()
    (root / "cat" / "Thumbs.db").write_bytes(b"x")


def _deep(root: Path, r: random.Random) -> None:
    place = root / "cat" / "/".join(["d"] * 100)
    place.mkdir(parents=True)
    (place / "x.png").write_bytes(encoded(Image.fromarray(noise(r)), "PNG"))


def _odd_layout(root: Path, r: random.Random) -> None:
    (root / "train" / "cat").mkdir(parents=True)
    (root / "test").write_text("a file where a folder is looked for")


SPOILS: tuple[Spoil, ...] = (
    *[_file] * 12, _loop, _nowhere, _outward, _pipe, _folder_as_image, _not_text, _class_not_text, _long_name,
    _empty_class, _one_class, _sparse, _strays, _deep, _odd_layout,
)  # fmt: skip


def spoiled(root: Path, r: random.Random) -> str:
    """Make a folder, spoil it in one to three ways, and say how."""
    sound(root, r)
    ways = r.sample(SPOILS, r.choice((1, 1, 2, 3)))
    for way in ways:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            way(root, r)
    return ", ".join(dict.fromkeys(way.__name__.strip("_") for way in ways))


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", size: int = -1
) -> bytes:
    """Return a member of an archive as it stands in the file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if size < 0 else size
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = 1, 3
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def two_classes(r: random.Random) -> bytes:
    """Return the members of two classes of ten small pictures."""
    names = [f"{c}/{i}.png" for c in "ab" for i in range(10)]
    return b"".join(member(name, encoded(Image.fromarray(noise(r)), "PNG")) for name in names)


def archive(path: Path, r: random.Random) -> str:
    """Make an archive, mostly a spoiled one, and say how."""
    image = encoded(Image.fromarray(noise(r)), "PNG")
    base = two_classes(r)
    end = bytes(1024)
    ways: dict[str, Callable[[], bytes]] = {
        "outside": lambda: base + member("../../outside.png", image) + end,
        "outside from within": lambda: base + member("a/../../../outside.png", image) + end,
        "absolute": lambda: base + member("/tmp/absolute.png", image) + end,
        "device": lambda: base + member("a/null.png", b"", tarfile.CHRTYPE) + end,
        "pipe": lambda: base + member("a/pipe.png", b"", tarfile.FIFOTYPE) + end,
        "link out": lambda: base + member("a/out.png", b"", tarfile.SYMTYPE, "/etc/passwd") + end,
        "hard link out": lambda: base + member("a/out.png", b"", tarfile.LNKTYPE, "../../etc/passwd") + end,
        "link, then through it": lambda: (
            base + member("door", b"", tarfile.SYMTYPE, "/tmp") + member("door/through.png", image) + end
        ),
        "claims much": lambda: base + member("a/much.png", b"", size=2**40) + end,
        "negative size": lambda: base + member("a/neg.png", image).replace(b"00000000", b"-0000001", 1) + end,
        "cut": lambda: base[: r.randrange(len(base))],
        "cut header": lambda: base + member("a/x.png", image)[:200],
        "flipped": lambda: flipped(base + end, r),
        "no end": lambda: base,
        "empty": lambda: end,
        "no bytes": lambda: b"",
        "not text": lambda: base + member(os.fsdecode(b"a/\xff\xfe.png"), image) + end,
        "image inside": lambda: base + member("a/" + r.choice(sorted(contents(r))), b"") + end,
        "odd image": lambda: base + member("a/x.png", r.choice(sorted(contents(r).values()))) + end,
        "same name twice": lambda: base + member("a/0.png", b"nothing") + end,
        "a zip": lambda: b"PK\x03\x04" + r.randbytes(200),
        "noise": lambda: r.randbytes(3000),
        "sound": lambda: base + end,
    }
    how = r.choice(sorted(ways))
    content = ways[how]()
    packed = path.name.endswith(".gz")
    if packed:
        content = gzip.compress(content)
        if r.random() < 0.3 and content:
            content, how = content[: r.randrange(len(content))], f"{how}, compressed and cut"
    path.write_bytes(content)
    return how


def bombs(folder: Path) -> list[Path]:
    """Make archives that are small and mean much: a sparse one, and one whose member is zeros, compressed."""
    r = random.Random(0)
    base = two_classes(r)
    sparse = folder / "sparse.tar"
    with sparse.open("wb") as file:
        file.write(base + member("a/bomb.png", b"", size=HUGE))
        file.truncate(len(base) + 512 + HUGE + 1024)
    zeros = folder / "zeros.tar.gz"
    with gzip.open(zeros, "wb", 1) as packed:
        packed.write(base + member("a/bomb.png", b"", size=2**29))
        for _ in range(2**9):
            packed.write(bytes(2**20))
        packed.write(bytes(1024))
    return [sparse, zeros]
