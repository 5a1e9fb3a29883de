"""Folders and archives of images: layouts, impossible ones, attacks."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.photos import classes_of_photos, count, load, picture, tar_of

from steppe import InputError, data
from steppe.config import Data


def test_a_folder_per_class_is_read_with_a_fixed_fifth_as_test(tmp_path: Path) -> None:
    held = load(classes_of_photos(tmp_path / "photos"))
    assert held.classes == ("cat", "dog")
    assert (len(held.train), len(held.val), len(held.test)) == (14, 2, 4)
    assert (held.channels, held.size) == (3, 12)
    assert "fixed fifth" in held.note
    everything = torch.cat([held.train.x, held.val.x, held.test.x])
    original = torch.from_numpy(np.asarray(picture(100)).transpose(2, 0, 1).copy())
    assert (everything == original).all(dim=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_train_and_test_folders_are_kept_apart(tmp_path: Path, name: str) -> None:
    classes_of_photos(tmp_path / "train")
    classes_of_photos(tmp_path / name, per_class=3)
    held = load(tmp_path)
    assert len(held.test) == 6
    assert len(held.train) + len(held.val) == 20


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.xz"])
@pytest.mark.parametrize("above", ["", "photos/", "./"])
def test_an_archive_gives_the_images_of_its_folder(tmp_path: Path, ending: str, above: str) -> None:
    root = classes_of_photos(tmp_path / "photos")
    archive = tmp_path / f"photos{ending}"
    tar_of(root, archive, above)
    a, b = load(root), load(archive)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(a, part).x, getattr(b, part).x)
        assert torch.equal(getattr(a, part).y, getattr(b, part).y)


def make_single(root: Path) -> None:
    classes_of_photos(root, ("only",))


def make_flat(root: Path) -> None:
    root.mkdir()
    picture(1).save(root / "a.png")


def make_none(root: Path) -> None:
    root.mkdir()


def make_empty_class(root: Path) -> None:
    classes_of_photos(root)
    (root / "empty").mkdir()


def make_odd_class(root: Path) -> None:
    classes_of_photos(root / "train")
    classes_of_photos(root / "test", ("cat", "dog", "owl"))


def make_wide(root: Path) -> None:
    classes_of_photos(root)
    picture(1, size=(14, 12)).save(root / "cat" / "wide.png")


def make_large(root: Path) -> None:
    classes_of_photos(root)
    picture(1, size=(14, 14)).save(root / "cat" / "large.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_single, "only the class 'only'"),
        (make_flat, "no class folders"),
        (make_none, "has no images"),
        (make_empty_class, "class folder empty of .* has no readable image"),
        (make_odd_class, "class 'owl' .* has no training images"),
        (make_wide, "cat/wide.png in .* is 14x12; give --data.size"),
        (make_large, "cat/large.png in .* is 14x14, .* is 12x12; give --data.size"),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "photos")
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "photos")
    assert "\n" not in str(caught.value)


def test_a_size_makes_all_images_square_and_equal(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_wide(root)
    assert load(root, size=9).size == 9


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    secret = classes_of_photos(tmp_path / "elsewhere", ("secret", "other"))
    (root / "loop").symlink_to(root)
    (root / "cat" / "out").symlink_to(secret)
    (root / "loop").unlink()
    assert sum(len(p) for p in (load(root).train, load(root).val, load(root).test)) == 20


def test_names_in_an_archive_are_labels_and_reach_nothing(tmp_path: Path) -> None:
    """Traversal, absolute names, links and devices: nothing is written, nothing outside is read."""
    archive, content = tmp_path / "evil.tar", io.BytesIO()
    picture(1).save(content, "PNG")
    with tarfile.open(archive, "w") as tar:
        for name in [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(9)] + ["../../out.png", "/tmp/x/y.png"]:
            info = tarfile.TarInfo(name)
            info.size = len(content.getvalue())
            tar.addfile(info, io.BytesIO(content.getvalue()))
        link = tarfile.TarInfo("cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        device = tarfile.TarInfo("cat/device.png")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    before = sorted(p for p in tmp_path.rglob("*"))
    held = data.load(f"folder:{archive}", Data(val=2))
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "out.png").exists()
    assert held.classes == ("cat", "dog")
    assert len(held.train) + len(held.val) + len(held.test) == 18


def test_a_truncated_archive_is_one_line(tmp_path: Path) -> None:
    archive = tmp_path / "photos.tar.gz"
    root = classes_of_photos(tmp_path / "photos")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=".")
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"archive .* cannot be read"):
        load(archive)


@pytest.mark.cifar
@pytest.mark.skipif("STEPPE_CIFAR" not in os.environ, reason="set STEPPE_CIFAR to the archive of CIFAR-10 images")
def test_the_archive_of_sixty_thousand_images_is_read_directly() -> None:
    held = data.load(f"folder:{os.environ['STEPPE_CIFAR']}", Data(train=1000))
    assert (len(held.train), len(held.val), len(held.test), held.size) == (1000, 100, 10_000, 32)
    assert len(held.classes) == 10


@pytest.mark.parametrize("packed", [False, True])
def test_one_folder_above_everything_is_looked_into(tmp_path: Path, packed: bool) -> None:
    """A stray picture beside the class folders is no class and does not hinder."""
    classes_of_photos(tmp_path / "in" / "photos")
    picture(5, size=(40, 30)).save(tmp_path / "in" / "photos" / "cover.png")
    path = tar_of(tmp_path / "in", tmp_path / "photos.tar.bz2") if packed else tmp_path / "in"
    held = load(path)
    assert (held.classes, count(held)) == (("cat", "dog"), 20)


@pytest.mark.parametrize("content", [None, b"no image"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_class_never_goes_missing_silently(tmp_path: Path, packed: bool, content: bytes | None) -> None:
    """Empty, or with nothing left once broken images are skipped."""
    root = classes_of_photos(tmp_path / "photos")
    (root / "owl").mkdir()
    if content is not None:
        (root / "owl" / "a.png").write_bytes(content)
    path = tar_of(root, tmp_path / "photos.tar") if packed else root
    with pytest.raises(InputError, match=r"class folder owl .* has no readable image"):
        load(path, skip_corrupt=True)


def test_an_empty_class_added_later_is_seen_despite_the_cache(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    load(root)
    (root / "owl").mkdir()
    with pytest.raises(InputError, match="class folder owl"):
        load(root)


def test_broken_and_odd_images_outside_train_and_test_do_not_matter(tmp_path: Path) -> None:
    classes_of_photos(tmp_path / "train")
    classes_of_photos(tmp_path / "test", per_class=3)
    classes_of_photos(tmp_path / "validation", ("cat", "cow"), per_class=1)
    (tmp_path / "validation" / "cat" / "bad.png").write_bytes(b"no image")
    picture(1, size=(50, 40)).save(tmp_path / "validation" / "cat" / "odd.png")
    held = load(tmp_path)
    assert (held.classes, len(held.test), held.skipped) == (("cat", "dog"), 6, ())


def test_hidden_folders_of_an_archive_are_no_classes(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    classes_of_photos(root / ".thumbs")
    assert load(tar_of(root, tmp_path / "photos.tar")).classes == ("cat", "dog")


def test_a_link_to_nowhere_is_a_broken_image_and_a_pipe_is_none(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    os.mkfifo(root / "cat" / "pipe.png")
    assert count(load(root)) == 20
    (root / "cat" / "lost.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"image cat/lost.png .* cannot be read"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == ("cat/lost.png",)


def test_a_linked_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    root = classes_of_photos(tmp_path / "photos")
    (root / "loop").symlink_to(root)
    with pytest.raises(InputError, match=r"class folder loop .*linked folders are not entered"):
        load(root)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_plain_archive_damaged_between_images_is_not_taken_for_a_short_one(tmp_path: Path, damage: str) -> None:
    archive = tar_of(classes_of_photos(tmp_path / "photos"), tmp_path / "photos.tar")
    with tarfile.open(archive) as tar:
        place = tar.getmembers()[12].offset
    content = bytearray(archive.read_bytes())
    content[place + 3] ^= 255
    archive.write_bytes(content[: place + 100] if damage == "cut" else content)
    with pytest.raises(InputError, match=r"archive .* cannot be read"):
        load(archive)


def test_of_two_images_of_one_name_in_an_archive_the_last_counts(tmp_path: Path) -> None:
    """As when the archive is unpacked; counted twice, one could be trained on and tested on."""
    root = classes_of_photos(tmp_path / "photos")
    archive = tar_of(root, tmp_path / "photos.tar")
    with tarfile.open(archive, "a") as tar:
        tar.add(root / "cat" / "000.png", arcname="cat/000.png")
    assert count(load(archive)) == 20
