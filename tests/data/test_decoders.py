"""Images that processes decode: the pixels of one process, and what becomes of images that end a process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.photos import class_folders, load, picture, tar_of

from steppe import hardware
from steppe.data.sources import _decoders, _image_files, pixels
from steppe.data.sources._decoders import Decoder
from steppe.data.sources.pixels import decode_one

PROGRAM = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("real", {path!r})
real = sys.modules["real"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
decode = real._decode

def changed(name, content, size):
    if "deadly" in name:
        os._exit(1)
    print("what a library prints", flush=True)
    return decode(name, content, size)

real._decode, real._LARGE = changed, {large}
real._serve()
"""


def contents(root: Path, *more: str) -> list[tuple[str, bytes | OSError]]:
    group: list[tuple[str, bytes | OSError]] = [
        (path.name, path.read_bytes()) for path in sorted(class_folders(root).rglob("*.png"))
    ]
    return [*group, ("none.png", OSError(2, "No such file")), ("text.png", b"no image"), *((m, b"") for m in more)]


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int = 2**25) -> None:
    """Decoders run the real program, in which some names are deadly and images may be large."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(path=pixels.__file__, large=large))
    monkeypatch.setattr(_decoders.pixels, "__file__", str(file))


def test_processes_decode_what_threads_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "photos", per_class=40)
    picture(7, "LA").save(root / "cat" / "see-through.png")
    (root / "dog" / "broken.png").write_bytes(b"\x89PNG")
    archive = tar_of(root, tmp_path / "photos.tar")
    started: list[str] = []
    start = Decoder._start
    monkeypatch.setattr(Decoder, "_start", lambda self: (started.append("one"), start(self)))
    expected = load(root, skip_corrupt=True)
    assert not started and expected.skipped == ("dog/broken.png",)
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    monkeypatch.setattr(_image_files, "_IN_THREADS", 0)
    images = load(archive, skip_corrupt=True)
    assert 1 <= len(started) <= 2
    assert images.fingerprint == expected.fingerprint
    assert (images.skipped, images.note) == (expected.skipped, expected.note)


def test_an_image_that_ends_its_process_is_named_and_the_others_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch)
    group = contents(tmp_path / "photos", "deadly.png")
    decoder = Decoder(6)
    try:
        images = decoder(group)
        assert decoder._process is None or decoder._process.poll() is None
    finally:
        decoder.close()
    for image, (name, content) in zip(images, group, strict=True):
        expected = decode_one(name, content, 6)
        assert image.name == name
        if name == "deadly.png":
            assert (image.pixels, image.reason) == (None, "its decoder crashed")
        elif expected.pixels is None:
            assert (image.pixels, image.reason) == (None, expected.reason)
        else:
            assert np.array_equal(image.pixels, expected.pixels) and image.remarks == expected.remarks


@pytest.mark.parametrize("case", ["large", "no program"])
def test_large_images_and_those_without_a_process_are_decoded_by_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    program(tmp_path, monkeypatch, large=10)
    if case == "no program":
        monkeypatch.setattr(_decoders.pixels, "__file__", str(tmp_path / "missing.py"))
    group, names = contents(tmp_path / "photos"), []

    def recorded(name: str, content: bytes | OSError, size: int | None) -> pixels.Decoded:
        names.append(name)
        return decode_one(name, content, size)

    monkeypatch.setattr(_decoders, "decode_one", recorded)
    decoder = Decoder(None)
    try:
        images = decoder(group)
    finally:
        decoder.close()
    assert [image.name for image in images] == [name for name, _ in group]
    mine = group if case == "no program" else group[:-2]  # whatever has pixels is large
    assert names == [name for name, _ in mine]


def test_the_program_imports_nothing_of_the_package_and_ends_with_its_input() -> None:
    code = "import sys; sys.argv = ['']; import runpy; runpy.run_path(sys.orig_argv[-1], run_name='__main__');"
    code += "print(sorted(n for n in sys.modules if n.startswith(('steppe', 'torch'))), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, pixels.__file__], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"[]\n")
