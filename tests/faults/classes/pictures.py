"""Folders and archives of images as the world sends them: odd, damaged, hostile. All of them are generated."""

import contextlib
import gzip
import io
import os
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faults.classes.damage import flipped
from PIL import Image

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


def _spoil(way: str, root: Path, r: random.Random) -> None:
    sound_image = encoded(Image.fromarray(noise(r)), "PNG")
    cat, dog = root / "cat", root / "dog"
    match way:
        case "odd file":
            name, content = r.choice(sorted(contents(r).items()))
            (r.choice((cat, dog)) / name).write_bytes(content)
        case "loop":
            (cat / "loop").symlink_to(root)
            (dog / "self.png").symlink_to("self.png")
        case "link to nothing":
            (cat / "gone.png").symlink_to("/nowhere/gone.png")
        case "links outward":
            (root / "out").symlink_to("/etc")
            (cat / "passwd.png").symlink_to("/etc/passwd")
        case "pipe":
            os.mkfifo(cat / "pipe.png")
        case "folder as image":
            (cat / "folder.png").mkdir()
        case "name that is not text":
            name = r.choice((b"\xff\xfe.png", b"caf\xe9.png", b"a\nb.png", b"\xe2\x80\xae.png"))
            (cat / os.fsdecode(name)).write_bytes(sound_image)
        case "class that is not text":
            (folder := root / os.fsdecode(b"\xff\xfe")).mkdir()
            for i in range(10):
                (folder / f"{i}.png").write_bytes(sound_image)
        case "long name":
            (cat / ("x" * 251 + ".png")).write_bytes(sound_image)
        case "empty class":
            (root / "bird").mkdir()
        case "one class":
            shutil.rmtree(dog)
        case "sparse":
            with (cat / "sparse.png").open("wb") as file:
                file.truncate(HUGE)
        case "strays":
            (root / "stray.png").write_bytes(sound_image)
            (root / ".hidden").mkdir()
            (cat / "Thumbs.db").write_bytes(b"x")
        case "deep":
            place = cat / "/".join(["d"] * 100)
            place.mkdir(parents=True)
            (place / "x.png").write_bytes(sound_image)
        case "odd layout":
            (root / "train" / "cat").mkdir(parents=True)
            (root / "test").write_text("a file where a folder is looked for")
        case _:
            raise ValueError(way)


WAYS = (
    *["odd file"] * 12, "loop", "link to nothing", "links outward", "pipe", "folder as image",
    "name that is not text", "class that is not text", "long name", "empty class", "one class", "sparse", "strays",
    "deep", "odd layout",
)  # fmt: skip


def spoiled(root: Path, r: random.Random) -> str:
    """Make a folder, spoil it in one to three ways, and say how."""
    sound(root, r)
    ways = r.sample(WAYS, r.choice((1, 1, 2, 3)))
    for way in ways:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            _spoil(way, root, r)
    return ", ".join(dict.fromkeys(ways))


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", size: int = -1
) -> bytes:
    """Return a member of an archive as it stands in the file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if size < 0 else size
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = 1, 3
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def hostile(image: bytes, scratch: Path, mark: str) -> dict[str, bytes]:
    """Return members that lead outside, to ``mark`` or into ``scratch``, that link, or that are devices."""
    kinds = {"symbolic": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    targets = {"out": "/etc/passwd", "up": "../../../etc/passwd", "to itself": "a/link.png"}
    return {
        "outside": member(f"../{mark}.png", image),
        "outside from within": member(f"a/../../{mark}.png", image),
        "absolute": member(f"{scratch}/{mark}.png", image),
        "null device": member("a/null.png", kind=tarfile.CHRTYPE),
        "disk": member("a/disk.png", kind=tarfile.BLKTYPE),
        "pipe": member("a/pipe.png", kind=tarfile.FIFOTYPE),
        **{
            f"{kind} link {way}": member("a/link.png", kind=code, link=to)
            for kind, code in kinds.items()
            for way, to in targets.items()
        },
        "folder through a link": member("door", kind=tarfile.SYMTYPE, link=str(scratch))
        + member(f"door/{mark}.png", image),
    }


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
    ways |= {
        label: lambda extra=extra: base + extra + end
        for label, extra in hostile(image, path.parent, "outside").items()
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
