"""Images of every kind, broken ones, and the cache of decoded images."""

from __future__ import annotations

import io
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from support.photos import classes_of_photos, count, load, picture, tar_of

from steppe import InputError
from steppe.cli.main import main
from steppe.cli.progress import Decoding
from steppe.data.dataset import Images
from steppe.data.sources import cache, image_folder


def test_every_kind_of_image_is_read_as_rgb(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    picture(1, "L").save(root / "cat" / "grey.png")
    picture(2, "RGBA").save(root / "cat" / "alpha.png")
    picture(3, "CMYK").save(root / "cat" / "cmyk.jpg")
    picture(4, "P").save(root / "cat" / "palette.gif", save_all=True, append_images=[picture(5, "P")])
    picture(6, "1").save(root / "cat" / "bits.png")
    deep = Image.fromarray(np.full((12, 12), 65535, np.uint16))
    deep.save(root / "cat" / "deep.png")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    held = load(root)
    everything = torch.cat([held.train.x, held.val.x, held.test.x])
    assert everything.shape == (26, 3, 12, 12)
    assert (everything == 255).all(dim=(1, 2, 3)).any()  # 16 bits brought to 8, not cut off


def test_all_grey_images_have_one_channel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            picture(i, "L").save(tmp_path / name / f"{i}.png")
    assert load(tmp_path).channels == 1


def broken(root: Path) -> str:
    file = io.BytesIO()
    picture(9).save(file, "JPEG")
    (root / "dog" / "broken.jpg").write_bytes(file.getvalue()[:-60])
    return "dog/broken.jpg"


def test_a_truncated_image_stops_before_training_and_is_named(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    name = broken(root)
    (root / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"image {name} and 1 more .* or give --data.skip_corrupt") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_told_to_skip_broken_images_it_says_which(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    name = broken(root)
    held = load(root, skip_corrupt=True)
    assert held.skipped == (name,)
    assert len(held.train) + len(held.val) + len(held.test) == 20
    assert load(root, skip_corrupt=True).skipped == (name,)  # also from the cache


def test_an_image_made_to_fill_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes_of_photos(tmp_path / "photos")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    picture(1, size=(20, 20)).save(root / "cat" / "bomb.png")
    with pytest.raises(InputError, match=r"cat/bomb.png .*far too many pixels"):
        load(root)


def test_decoding_happens_once_and_a_damaged_cache_is_decoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes_of_photos(tmp_path / "photos")
    first = load(root)
    with monkeypatch.context() as once:
        once.setattr(image_folder, "_decode_all", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(load(root).train.x, first.train.x)
    for file in Path(os.environ["STEPPE_CACHE"]).rglob("train_x.npy"):
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(load(root).train.x, first.train.x)
    picture(77).save(root / "cat" / "new.png")
    assert sum(len(p) for p in (load(root).train, load(root).val, load(root).test)) == 21


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes_of_photos(tmp_path / "photos")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("STEPPE_CACHE", str(blocked))
    assert len(load(root).test) == 4


def test_sixteen_bits_keep_their_scale_in_dark_images_too(tmp_path: Path) -> None:
    """A 16-bit image is divided by 257 whatever its largest value; an 8-bit one is not."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(np.full((12, 12), 200, np.uint16)).save(tmp_path / name / f"{i}.png")
    assert bool((load(tmp_path).train.x == 1).all())


def test_transparent_palettes_are_read_without_a_warning(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    picture(1, "P").save(root / "cat" / "clear.png", transparency=bytes(range(256)))
    assert count(load(root)) == 21


def test_any_damage_is_a_named_image_and_never_a_traceback(tmp_path: Path) -> None:
    """Images cut short or with a byte changed, in every format: read, or left out by name."""
    root = classes_of_photos(tmp_path / "photos")
    rng = np.random.default_rng(0)
    for ending in ("png", "jpg", "gif", "tif", "bmp", "webp"):
        file = io.BytesIO()
        picture(1).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending))
        for i in range(12):
            content = bytearray(file.getvalue())
            content[int(rng.integers(len(content) // 2))] ^= 255
            (root / "dog" / f"bad{i}.{ending}").write_bytes(content[: int(rng.integers(1, len(content)))])
    held = load(root, skip_corrupt=True, size=12)
    assert count(held) + len(held.skipped) == 20 + 72
    assert held.skipped


@pytest.mark.parametrize("name", ["train_x.npy", "test_y.npy", "about.json"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_every_damaged_file_of_the_cache_is_decoded_anew(tmp_path: Path, name: str, damage: bytes | None) -> None:
    root = classes_of_photos(tmp_path / "photos")
    first = load(root)
    file = next(Path(os.environ["STEPPE_CACHE"]).rglob(name))
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    assert torch.equal(load(root).train.x, first.train.x)
    assert file.stat().st_size > 10


def test_labels_that_are_no_class_in_a_cache_are_decoded_anew(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    first = load(root)
    file = next(Path(os.environ["STEPPE_CACHE"]).rglob("train_y.npy"))
    np.save(file, np.load(file) + 7)
    assert torch.equal(load(root).train.y, first.train.y)


def test_nothing_read_from_the_cache_hangs_on_its_files(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    load(root)
    held = load(root)
    before = held.test.x.clone()
    file = next(Path(os.environ["STEPPE_CACHE"]).rglob("test_x.npy"))
    with file.open("r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert torch.equal(held.test.x, before)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set counts as a large one."""
    monkeypatch.setattr(cache, "SMALL", 0)


def test_images_are_mapped_from_the_cache_and_outlive_its_entry(tmp_path: Path, large: None) -> None:
    """Parts share the file, and removing or replacing it changes nothing."""
    root = classes_of_photos(tmp_path / "photos")
    for held in (load(root), load(root)):  # decoded now, and found in the cache
        file = next(Path(os.environ["STEPPE_CACHE"]).rglob("train_x.npy"))
        assert held.train.file == held.val.file == file
        assert held.train.pixels.data_ptr() == held.val.pixels.data_ptr()
        assert any(line.endswith(str(file)) for line in Path("/proc/self/maps").read_text().splitlines())
    before = held.train.x
    np.save(file.with_suffix(".new.npy"), np.zeros_like(np.load(file)))
    os.replace(file.with_suffix(".new.npy"), file)
    assert torch.equal(held.train.x, before) and bool(before.any())
    file.unlink()
    assert torch.equal(held.train.x, before)


def test_mapped_images_behave_as_copied_ones(tmp_path: Path, large: None) -> None:
    root = classes_of_photos(tmp_path / "photos")
    held = load(root).train
    copied = Images(held.x, held.y)
    index = torch.tensor([5, 0, 3, 3])
    for view, whole in ((held, copied), (held.take(index.numpy()), copied.take(index.numpy()))):
        assert view.file is not None and whole.file is None
        assert torch.equal(view.x, whole.x) and torch.equal(view.y, whole.y)
        assert torch.equal(view.at(torch.tensor([2, 1])), whole.x[[2, 1]])
        assert torch.equal(view.at(slice(1, 3)), whole.x[1:3])
        part, whole_part = view.part(slice(1, 4)), whole.part(slice(1, 4))
        assert len(part) == 3 and torch.equal(part.x, whole_part.x) and torch.equal(part.y, whole_part.y)
        assert torch.equal(part.take(np.array([2])).x, whole.x[3:4])


def test_a_mapped_set_travels_to_another_process_as_its_file_s_name(tmp_path: Path, large: None) -> None:
    root = classes_of_photos(tmp_path / "photos", per_class=200)
    held = load(root).train
    content = pickle.dumps(held)
    assert len(content) < held.x.numel() / 10
    again = pickle.loads(content)
    assert torch.equal(again.x, held.x) and torch.equal(again.y, held.y)


def test_an_unwritable_cache_is_told_at_the_level_of_information(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = classes_of_photos(tmp_path / "photos")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        load(root)
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "not kept" in caplog.text


def test_progress_counts_images_of_a_folder_and_bytes_of_an_archive(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    archive = tar_of(root, tmp_path / "photos.tar")
    for path, total in ((root, 20), (archive, archive.stat().st_size)):
        heard: list[tuple[int, int]] = []
        load(path, progress=lambda done, of, heard=heard: heard.append((done, of)))
        assert {of for _, of in heard} == {total}
        assert [done for done, _ in heard] == sorted(done for done, _ in heard)
        assert heard[-1][0] <= total
        again = len(heard)
        load(path, progress=lambda done, of, heard=heard: heard.append((done, of)))
        assert len(heard) == again  # from the cache there is nothing to wait for


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_how_far_decoding_is_and_nothing_where_there_is_nothing_to_do(
    tmp_path: Path, terminal: bool
) -> None:
    root = classes_of_photos(tmp_path / "photos")
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=80)
    for _ in range(2):
        with Decoding(console, pause=0.0) as progress:
            load(root, progress=progress)
    text = said.getvalue()
    assert "decoding images" in text and "100%" in text
    assert text.count("50%") == 1 or terminal


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.folder() == Path(os.environ["STEPPE_CACHE"])
    monkeypatch.delenv("STEPPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "steppe"


def test_the_command_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = classes_of_photos(tmp_path / "photos")
    name = broken(root)
    words = ["train", "--plan", "--dataset", f"folder:{root}", "--data.size", "18", "--batch", "4"]
    assert main([*words, "--data.skip_corrupt"]) == 0
    assert f"1 image left out that cannot be read: {name}" in capsys.readouterr().out


def test_a_recipe_at_a_scale_shows_that_it_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the images before there is a run, and that is when they are decoded."""
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "steppe.cli.progress.Decoding.__call__", lambda _, done, total: heard.append((done, total))
    )
    root = classes_of_photos(tmp_path / "photos")
    words = ["recipe=rwp-table1", "scale=1e-6", "--method", "sam", "--model", "simple-cnn", "--data.size", "18"]
    assert main(["train", "--plan", *words, "--dataset", f"folder:{root}"]) == 0
    assert heard and heard[-1][0] == heard[-1][1]
