"""The cache of decoded images: used when it is intact, repaired when it is damaged, never needed."""

import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from support.photos import class_folders, count, load, picture

from steppe import InputError, data
from steppe.config import Data
from steppe.data.sources import cache, image_folder


def cached_file(name: str) -> Path:
    return next(Path(os.environ["STEPPE_CACHE"]).rglob(name))


def test_decoding_happens_once_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "photos")
    first = load(root)
    with monkeypatch.context() as once:
        once.setattr(image_folder, "_decode_all", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(load(root).train.x, first.train.x)
    picture(77).save(root / "cat" / "new.png")
    assert count(load(root)) == 21


@pytest.mark.parametrize("swapped", ["files", "folders"])
def test_files_of_one_size_and_date_that_exchange_their_names_are_decoded_again(
    tmp_path: Path, swapped: str
) -> None:
    root = tmp_path / "photos"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(5):
            picture(10 * c + i).save(root / name / f"{i}.bmp")
            os.utime(root / name / f"{i}.bmp", ns=(0, 0))
    first = load(root)
    pair = [root / name for name in (("cat", "dog") if swapped == "folders" else ("cat/0.bmp", "dog/0.bmp"))]
    pair[0].rename(root / ".aside")
    pair[1].rename(pair[0])
    (root / ".aside").rename(pair[1])
    assert load(root).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["train_x.npy", "test_y.npy", "about.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "truncated"])
def test_a_damaged_cache_is_decoded_again(tmp_path: Path, name: str, damage: str) -> None:
    root = class_folders(tmp_path / "photos")
    first = load(root)
    file = cached_file(name)
    content = {"empty": b"", "garbage": b"garbage", "truncated": file.read_bytes()[:100]}.get(damage)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert torch.equal(load(root).train.x, first.train.x)
    assert file.stat().st_size > 100


def test_labels_out_of_range_are_decoded_again_and_loaded_images_need_no_cache(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos")
    first = load(root)
    labels = cached_file("train_y.npy")
    np.save(labels, np.load(labels) + 7)
    images = load(root)
    assert torch.equal(images.train.y, first.train.y)
    before = images.test.x.clone()
    file = cached_file("test_x.npy")
    with file.open("r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert torch.equal(images.test.x, before)


def test_an_unwritable_cache_is_logged_and_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "photos")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        assert len(load(root).test) == 4
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "not cached" in caplog.text


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.folder() == Path(os.environ["STEPPE_CACHE"])
    monkeypatch.delenv("STEPPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "steppe"


def test_without_a_home_images_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    root = class_folders(tmp_path / "photos")
    expected = load(root)
    for name in ("STEPPE_CACHE", "XDG_CACHE_HOME", "STEPPE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: no_home(path) if str(path).startswith("~") else path)
    with caplog.at_level(logging.INFO):
        images = load(root)
    assert torch.equal(images.train.x, expected.train.x)
    assert images.fingerprint == expected.fingerprint != ""
    assert "HOME is not set" in caplog.text
    for name in ("folder:~/photos", "cifar10:~/files", "cifar10", "cifar100:download"):
        with pytest.raises(InputError, match="^~/.* is in no home: HOME is not set; set it"):
            data.load(name, Data())


def test_an_entry_follows_the_umask_and_one_that_cannot_be_read_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "photos")
    before = os.umask(0o027)
    try:
        first = load(root)
    finally:
        os.umask(before)
    entry = cached_file("about.json").parent
    assert stat.S_IMODE(entry.stat().st_mode) == 0o750
    assert stat.S_IMODE((entry / "about.json").stat().st_mode) == 0o640

    def refused(entry: Path) -> None:
        raise PermissionError(13, "Permission denied", str(entry))

    monkeypatch.setattr(cache, "_read", refused)
    again = load(root)
    assert torch.equal(again.train.x, first.train.x)
    assert again.fingerprint == first.fingerprint != ""
    assert caplog.messages == [f"cannot read {entry}: Permission denied; decoding again"]
    assert entry.is_dir()
