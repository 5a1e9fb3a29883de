"""Images that would have another program run, or claim more than there is."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import EpsImagePlugin
from support.photos import classes_of_photos, load, tar_of

from steppe import InputError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(attacked) (w) file closefile\n"


def test_a_file_named_as_an_image_never_starts_a_program(tmp_path: Path, monkeypatch):
    """Pillow would hand PostScript to Ghostscript, whatever the file is called."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    root = classes_of_photos(tmp_path / "photos")
    (root / "cat" / "page.tif").write_bytes(EPS)
    for name in ("Popen", "check_call", "run", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    with pytest.raises(InputError, match="cat/page.tif in .* cannot be read .no known kind of image"):
        load(root)


def test_a_file_that_claims_more_bytes_than_an_image_has_is_not_read(tmp_path: Path):
    root = classes_of_photos(tmp_path / "photos")
    with (root / "cat" / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="cat/sparse.png in .* cannot be read .more bytes than any image"):
        load(root)


def test_an_archive_that_claims_more_bytes_than_an_image_has_is_not_read(tmp_path: Path):
    path = tar_of(classes_of_photos(tmp_path / "photos"), tmp_path / "photos.tar")
    member = tarfile.TarInfo("cat/much.png")
    member.size = 2**40
    path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(-len(path.read_bytes().rstrip(b"\0")) % 512))
    with path.open("ab") as file:
        file.write(member.tobuf())
        file.truncate(file.tell() + 2**40)
    with pytest.raises(InputError, match="cat/much.png is 1099511627776 bytes, more than any image"):
        load(path)
