"""Decoding of images: every format, damaged files, malicious files, progress."""

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from rich.console import Console
from support.photos import class_folders, count, load, picture, tar_of

from steppe import InputError
from steppe.cli.main import main
from steppe.cli.progress import Decoding
from steppe.data.sources import pixels

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(attacked) (w) file closefile\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "photos")


def test_every_format_is_read_as_rgb_within_a_limit(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(1, "L").save(photos / "cat" / "grey.png")
    picture(2, "RGBA").save(photos / "cat" / "alpha.png")
    picture(3, "CMYK").save(photos / "cat" / "cmyk.jpg")
    picture(4, "P").save(photos / "cat" / "palette.gif", save_all=True, append_images=[picture(5, "P")])
    picture(5, "P").save(photos / "cat" / "clear.png", transparency=bytes(range(256)))  # without a warning
    picture(6, "1").save(photos / "cat" / "bits.png")
    Image.fromarray(np.full((12, 12), 65535, np.uint16)).save(photos / "cat" / "deep.png")
    (photos / "cat" / "notes.txt").write_text("not an image")
    (photos / "cat" / ".hidden.png").write_bytes(b"")
    images = load(photos)
    everything = torch.cat([images.train.x, images.val.x, images.test.x])
    assert everything.shape == (27, 3, 12, 12)
    assert (everything == 255).all(dim=(1, 2, 3)).any()  # 16 bits scaled to 8, not truncated
    monkeypatch.setattr(pixels, "MOST_PIXELS", 300)
    picture(1, size=(20, 20)).save(photos / "cat" / "bomb.png")
    with pytest.raises(InputError, match=r"cat/bomb.png .*more than 300 pixels"):
        load(photos)


def truncated_image(root: Path) -> str:
    file = io.BytesIO()
    picture(9).save(file, "JPEG")
    (root / "dog" / "broken.jpg").write_bytes(file.getvalue()[:-60])
    return "dog/broken.jpg"


def test_unreadable_images_are_named_before_training_or_skipped(photos: Path) -> None:
    name = truncated_image(photos)
    (photos / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"image {name} and 1 more .* or give --data.skip_corrupt") as error:
        load(photos)
    assert "\n" not in str(error.value)
    for _ in range(2):  # the second time from the cache
        images = load(photos, skip_corrupt=True)
        assert images.skipped == (name, "dog/empty.png") and count(images) == 20


def test_any_damage_is_a_named_image_and_never_a_traceback(photos: Path) -> None:
    rng = np.random.default_rng(0)
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tif"):
        file = io.BytesIO()
        picture(1).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()))
        for i in range(12):
            content = bytearray(file.getvalue())
            content[int(rng.integers(len(content) // 2))] ^= 255
            (photos / "dog" / f"bad{i}.{ending}").write_bytes(content[: int(rng.integers(1, len(content)))])
    images = load(photos, skip_corrupt=True, size=12)
    assert count(images) + len(images.skipped) == 20 + 72
    assert images.skipped


def test_postscript_named_as_an_image_never_starts_a_program(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would run Ghostscript, whatever the file is called."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    (photos / "cat" / "page.tif").write_bytes(EPS)
    for name in ("Popen", "check_call", "run", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    with pytest.raises(InputError, match="cat/page.tif in .* cannot be read .unknown image format"):
        load(photos)


def test_files_larger_than_any_image_are_not_read(photos: Path) -> None:
    path = tar_of(photos, photos.with_suffix(".tar"))
    member = tarfile.TarInfo("cat/much.png")
    member.size = 2**40
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % 512) + member.tobuf())
    with path.open("ab") as file:
        file.truncate(file.tell() + 2**40)
    with pytest.raises(InputError, match="cat/much.png has 1099511627776 bytes, more than any image"):
        load(path)
    with (photos / "cat" / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="cat/sparse.png in .* cannot be read .larger than any image"):
        load(photos)


def test_progress_counts_images_of_a_folder_and_bytes_of_an_archive(photos: Path) -> None:
    archive = tar_of(photos, photos.with_suffix(".tar"))
    for path, total in ((photos, 20), (archive, archive.stat().st_size)):
        calls: list[tuple[int, int]] = []
        load(path, progress=lambda *call, calls=calls: calls.append(call))
        assert {of for _, of in calls} == {total}
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] <= total
        before = len(calls)
        load(path, progress=lambda *call, calls=calls: calls.append(call))
        assert len(calls) == before  # nothing is decoded, the images are cached


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_is_shown_once_and_not_for_cached_images(photos: Path, terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=80)
    for _ in range(2):
        with Decoding(console, pause=0.0) as progress:
            load(photos, progress=progress)
    text = output.getvalue()
    assert "decoding images" in text and "100%" in text
    assert text.count("50%") == 1 or terminal


def test_the_command_names_skipped_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = truncated_image(photos)
    arguments = ["train", "--plan", "--dataset", f"folder:{photos}", "--data.size", "18", "--batch", "4"]
    assert main([*arguments, "--data.skip_corrupt"]) == 0
    assert f"1 image left out that cannot be read: {name}" in capsys.readouterr().out


def test_a_recipe_at_a_scale_shows_progress(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decodes the images to count them before there is a run."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr("steppe.cli.progress.Decoding.__call__", lambda _, *call: calls.append(call))
    options = ["recipe=rwp-table1", "scale=1e-6", "--method", "sam", "--model", "simple-cnn", "--data.size", "18"]
    assert main(["train", "--plan", *options, "--dataset", f"folder:{photos}"]) == 0
    assert calls and calls[-1][0] == calls[-1][1]
