"""Folders and archives of images: layouts, unusable ones, malicious ones."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.photos import class_folders, count, load, picture, tar_of

from steppe import InputError, data
from steppe.config import Data


def test_class_folders_are_read_with_a_fixed_fifth_as_test(tmp_path: Path) -> None:
    images = load(class_folders(tmp_path / "photos"))
    assert images.classes == ("cat", "dog")
    assert (len(images.train), len(images.val), len(images.test)) == (14, 2, 4)
    assert (images.channels, images.size) == (3, 12)
    assert "fixed fifth" in images.note
    everything = torch.cat([images.train.x, images.val.x, images.test.x])
    original = torch.from_numpy(np.asarray(picture(100)).transpose(2, 0, 1).copy())
    assert (everything == original).all(dim=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_train_and_test_folders_are_separate(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / name, per_class=3)
    images = load(tmp_path)
    assert (len(images.test), len(images.train) + len(images.val)) == (6, 20)


@pytest.mark.parametrize(
    ("ending", "above"), [(".tar", "photos/"), (".tar.gz", ""), (".tgz", "./"), (".tar.xz", "photos/")]
)
def test_an_archive_gives_the_images_of_its_folder(tmp_path: Path, ending: str, above: str) -> None:
    root = class_folders(tmp_path / "photos")
    archive = tar_of(root, tmp_path / f"photos{ending}", above)
    a, b = load(root), load(archive)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(a, part).x, getattr(b, part).x)
        assert torch.equal(getattr(a, part).y, getattr(b, part).y)


@pytest.mark.parametrize("packed", [False, True])
def test_a_single_folder_around_everything_is_entered(tmp_path: Path, packed: bool) -> None:
    """An image next to the class folders is not a class and is not used."""
    class_folders(tmp_path / "in" / "photos")
    picture(5, size=(40, 30)).save(tmp_path / "in" / "photos" / "cover.png")
    path = tar_of(tmp_path / "in", tmp_path / "photos.tar.bz2") if packed else tmp_path / "in"
    images = load(path)
    assert (images.classes, count(images)) == (("cat", "dog"), 20)


def add_to_class(name: str, size: tuple[int, int]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        class_folders(root)
        picture(1, size=size).save(root / "cat" / name)

    return make


def make_single_image(root: Path) -> None:
    root.mkdir()
    picture(1).save(root / "a.png")


def make_unpaired_class(root: Path) -> None:
    class_folders(root / "train")
    class_folders(root / "test", ("cat", "dog", "owl"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: class_folders(root, ("only",)), "only the class 'only'"),
        (make_single_image, "no class folders"),
        (lambda root: root.mkdir(), "has no images"),
        (make_unpaired_class, "class 'owl' .* has no training images"),
        (add_to_class("wide.png", (14, 12)), "cat/wide.png in .* is 14x12; give --data.size"),
        (add_to_class("large.png", (14, 14)), "cat/large.png in .* is 14x14, .* is 12x12; give --data.size"),
    ],
)
def test_unusable_folders_are_one_line(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "photos")
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / "photos")
    assert "\n" not in str(error.value)


def test_a_size_makes_all_images_square_and_equal(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    add_to_class("wide.png", (14, 12))(root)
    assert load(root, size=9).size == 9


@pytest.mark.parametrize("content", [None, b"no image"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_class_never_disappears_silently(tmp_path: Path, packed: bool, content: bytes | None) -> None:
    """An empty class, or one without a readable image, is an error, also if it appears after caching."""
    root = class_folders(tmp_path / "photos")
    load(root, skip_corrupt=True)
    (root / "owl").mkdir()
    if content is not None:
        (root / "owl" / "a.png").write_bytes(content)
    path = tar_of(root, tmp_path / "photos.tar") if packed else root
    with pytest.raises(InputError, match=r"class folder owl .* has no readable image"):
        load(path, skip_corrupt=True)


def test_images_outside_train_and_test_are_counted_and_not_checked(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "test", per_class=3)
    class_folders(tmp_path / "extra", ("cat", "cow"), per_class=1)
    (tmp_path / "extra" / "cat" / "bad.png").write_bytes(b"no image")
    picture(1, size=(50, 40)).save(tmp_path / "extra" / "cat" / "odd.png")
    images = load(tmp_path)
    assert (images.classes, len(images.test), images.skipped) == (("cat", "dog"), 6, ())
    assert "left out: 4 images without a class (in extra/cat, extra/cow)" in images.note


@pytest.mark.parametrize("ending", ["", ".tar", ".zip"])
def test_links_lead_to_images_in_folders_and_archives(tmp_path: Path, ending: str) -> None:
    root = class_folders(tmp_path / "all" / "photos")
    class_folders(root / ".thumbs")
    os.link(root / "cat" / "000.png", root / "cat" / "hard.png")
    (root / "cat" / "soft.png").symlink_to("000.png")
    (root / "cat" / "chain.png").symlink_to("soft.png")
    (root / "owl").symlink_to(root / "dog", target_is_directory=True)
    if ending:  # links in archives are relative
        (root / "owl").unlink()
        (root / "owl").symlink_to("dog", target_is_directory=True)
        (root / "cat" / "out.png").symlink_to("/etc/passwd")
    (root / "cat" / "loop").symlink_to(".." if ending else root, target_is_directory=True)
    path = {"": lambda: root, ".tar": lambda: tar_of(root, tmp_path / "a.tar"), ".zip": lambda: zip_of(root)}[
        ending
    ]()
    images = load(path)
    assert images.classes == ("cat", "dog", "owl") and count(images) == 33
    assert "1 circular link" in images.note
    assert ("1 unresolved link" in images.note) == bool(ending)
    assert "1 of the system (.thumbs)" in images.note


def test_links_in_links_are_as_in_the_folder_and_do_not_multiply_the_images(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos", per_class=3)
    for name, other in (("cat", "dog"), ("dog", "cat")):
        (root / name / f"of {other}").symlink_to(f"../{other}", target_is_directory=True)
    (root / "dog" / "self.png").symlink_to("self.png")
    packed, plain = load(tar_of(root, tmp_path / "a.tar")), load(root)
    assert count(packed) == count(plain) == 2 * (3 + 3)
    assert "circular link" in packed.note and "circular link" in plain.note
    for depth in range(7):  # no circle, and 10^7 names
        (root / "cat" / str(depth)).mkdir()
        for i in range(10):
            target = f"../{depth + 1}" if depth < 6 else "../../dog"
            (root / "cat" / str(depth) / f"l{i}").symlink_to(target, target_is_directory=True)
    with pytest.raises(InputError, match=r"archive .*b.tar cannot be read \(its links .* more than 100,000"):
        load(tar_of(root, tmp_path / "b.tar"))


def zip_of(root: Path) -> Path:
    """Pack a folder with links kept as such."""
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as content:
        for file in sorted(root.rglob("*")):
            name = file.relative_to(root).as_posix()
            if file.is_symlink():
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                content.writestr(info, os.readlink(file))
            else:
                content.write(file, name)
    return archive


def test_a_broken_link_is_an_unreadable_image_and_a_pipe_is_skipped(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos")
    os.mkfifo(root / "cat" / "pipe.png")
    assert count(load(root)) == 20
    (root / "cat" / "lost.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"image cat/lost.png .* cannot be read"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == ("cat/lost.png",)


def test_malicious_names_in_an_archive_write_and_read_nothing(tmp_path: Path) -> None:
    """Relative and absolute paths, links and devices."""
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
    before = sorted(tmp_path.rglob("*"))
    images = data.load(f"folder:{archive}", Data(val=2))
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "out.png").exists()
    assert (images.classes, count(images)) == (("cat", "dog"), 18)


@pytest.mark.parametrize("damage", ["cut", "flipped", "compressed and cut"])
def test_a_damaged_archive_is_not_taken_for_a_short_one(tmp_path: Path, damage: str) -> None:
    root = class_folders(tmp_path / "photos")
    archive = tar_of(root, tmp_path / ("photos.tar.gz" if damage == "compressed and cut" else "photos.tar"))
    with tarfile.open(archive) as tar:
        header = tar.getmembers()[12].offset
    content = bytearray(archive.read_bytes())
    if damage == "flipped":
        content[header + 3] ^= 255
    archive.write_bytes({"cut": content[: header + 100], "flipped": content}.get(damage, content[:-2000]))
    with pytest.raises(InputError, match=r"archive .* cannot be read"):
        load(archive)


def test_of_two_images_of_one_name_in_an_archive_the_last_is_used(tmp_path: Path) -> None:
    """As in the unpacked archive; with both, one could be trained on and the other tested on."""
    root = class_folders(tmp_path / "photos")
    archive = tar_of(root, tmp_path / "photos.tar")
    with tarfile.open(archive, "a") as tar:
        tar.add(root / "cat" / "000.png", arcname="cat/000.png")
    assert count(load(archive)) == 20
