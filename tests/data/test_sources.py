"""Real files: images of every kind, broken ones, archives, published formats, attacks."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steppe import InputError, data
from steppe.config import Data
from steppe.data import folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return image if mode == "RGB" else image.convert(mode)


def classes_of_photos(root: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 10) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            picture(100 * c + i).save(root / name / f"{i:03d}.png")
    return root


def load(path: Path, **options) -> data.DataSet:
    return data.load(f"folder:{path}", Data(**{"val": 2, **options}))


def test_a_folder_per_class_is_read_with_a_fixed_fifth_as_test(tmp_path):
    held = load(classes_of_photos(tmp_path / "photos"))
    assert held.classes == ("cat", "dog")
    assert (len(held.train), len(held.val), len(held.test)) == (14, 2, 4)
    assert (held.channels, held.size) == (3, 12)
    assert "fixed fifth" in held.note
    everything = torch.cat([held.train.x, held.val.x, held.test.x])
    original = torch.from_numpy(np.asarray(picture(100)).transpose(2, 0, 1).copy())
    assert (everything == original).all(dim=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_train_and_test_folders_are_kept_apart(tmp_path, name):
    classes_of_photos(tmp_path / "train")
    classes_of_photos(tmp_path / name, per_class=3)
    held = load(tmp_path)
    assert len(held.test) == 6
    assert len(held.train) + len(held.val) == 20


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.xz"])
@pytest.mark.parametrize("above", ["", "photos/", "./"])
def test_an_archive_gives_the_images_of_its_folder(tmp_path, ending, above):
    root = classes_of_photos(tmp_path / "photos")
    archive = tmp_path / f"photos{ending}"
    mode = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz"}[ending]
    with tarfile.open(archive, mode) as tar:
        for file in sorted(root.rglob("*.png")):
            tar.add(file, arcname=above + file.relative_to(root).as_posix())
    a, b = load(root), load(archive)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(a, part).x, getattr(b, part).x)
        assert torch.equal(getattr(a, part).y, getattr(b, part).y)


def test_every_kind_of_image_is_read_as_rgb(tmp_path):
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


def test_all_grey_images_have_one_channel(tmp_path):
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


def test_a_truncated_image_stops_before_training_and_is_named(tmp_path):
    root = classes_of_photos(tmp_path / "photos")
    name = broken(root)
    (root / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"image {name} and 1 more .* or give --data.skip_corrupt") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_told_to_skip_broken_images_it_says_which(tmp_path):
    root = classes_of_photos(tmp_path / "photos")
    name = broken(root)
    held = load(root, skip_corrupt=True)
    assert held.skipped == (name,)
    assert len(held.train) + len(held.val) + len(held.test) == 20
    assert load(root, skip_corrupt=True).skipped == (name,)  # also from the cache


def test_an_image_made_to_fill_the_memory_is_named(tmp_path, monkeypatch):
    root = classes_of_photos(tmp_path / "photos")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    picture(1, size=(20, 20)).save(root / "cat" / "bomb.png")
    with pytest.raises(InputError, match=r"cat/bomb.png .*far too many pixels"):
        load(root)


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
        (make_empty_class, "empty has no readable image; fill it or remove it"),
        (make_odd_class, "class 'owl' .* has no training images"),
        (make_wide, "cat/wide.png in .* is 14x12; give --data.size"),
        (make_large, "cat/large.png in .* is 14x14, .* is 12x12; give --data.size"),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(tmp_path, make, message):
    make(tmp_path / "photos")
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "photos")
    assert "\n" not in str(caught.value)


def test_a_size_makes_all_images_square_and_equal(tmp_path):
    root = tmp_path / "photos"
    make_wide(root)
    assert load(root, size=9).size == 9


def test_linked_folders_are_not_entered(tmp_path):
    root = classes_of_photos(tmp_path / "photos")
    secret = classes_of_photos(tmp_path / "elsewhere", ("secret", "other"))
    (root / "loop").symlink_to(root)
    (root / "cat" / "out").symlink_to(secret)
    (root / "loop").unlink()
    assert sum(len(p) for p in (load(root).train, load(root).val, load(root).test)) == 20


def test_names_in_an_archive_are_labels_and_reach_nothing(tmp_path):
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


def test_a_truncated_archive_is_one_line(tmp_path):
    archive = tmp_path / "photos.tar.gz"
    root = classes_of_photos(tmp_path / "photos")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=".")
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"archive .* cannot be read"):
        load(archive)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "write folder:PATH"),
        ("folder:nowhere", "there is no nowhere"),
        ("digitz", "unknown data set 'digitz'; did you mean 'digits'"),
        ("digits:here", "digits has no files"),
        ("cifar10:nowhere", "cifar10 is not in nowhere; give cifar10:PATH"),
    ],
)
def test_unknown_names_and_missing_paths_are_one_line(name, message):
    with pytest.raises(InputError, match=message):
        data.load(name, Data())


def test_decoding_happens_once_and_a_damaged_cache_is_decoded_anew(tmp_path, monkeypatch):
    root = classes_of_photos(tmp_path / "photos")
    first = load(root)
    with monkeypatch.context() as once:
        once.setattr(folder, "_decode_all", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(load(root).train.x, first.train.x)
    for file in Path(os.environ["STEPPE_CACHE"]).rglob("train_x.npy"):
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(load(root).train.x, first.train.x)
    picture(77).save(root / "cat" / "new.png")
    assert sum(len(p) for p in (load(root).train, load(root).val, load(root).test)) == 21


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    root = classes_of_photos(tmp_path / "photos")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("STEPPE_CACHE", str(blocked))
    assert len(load(root).test) == 4


def cifar_folder(root: Path, labels: int = 10) -> Path:
    """Files as published: pickles of protocol 2 with byte keys."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {
            b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
            b"labels": [int(v) for v in np.arange(20) % labels],
        }
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


def test_cifar10_is_read_as_published(tmp_path):
    root = cifar_folder(tmp_path / "cifar-10-batches-py")
    held = data.load(f"cifar10:{root}", Data(val=10))
    assert (len(held.train), len(held.val), len(held.test)) == (90, 10, 20)
    first = pickle.loads((root / "test_batch").read_bytes(), encoding="bytes")
    assert torch.equal(held.test.x, torch.from_numpy(first[b"data"].reshape(-1, 3, 32, 32)))
    above = data.load(f"cifar10:{tmp_path}", Data(val=10))
    assert torch.equal(above.test.x, held.test.x)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        tar.add(root, arcname=root.name)
    packed = data.load(f"cifar10:{tmp_path / 'cifar.tar.gz'}", Data(val=10, size=16))
    assert packed.test.x.shape == (20, 3, 16, 16)


def test_cifar100_binary_files_are_read(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("test", 100)):
        rows = rng.integers(0, 256, (count, 3074), dtype=np.uint8)
        rows[:, 0], rows[:, 1] = 0, np.arange(count) % 100
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    held = data.load(f"cifar100:{tmp_path}", Data(val=100))
    assert len(held.classes) == 100
    assert torch.equal(held.test.y, torch.arange(100))


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = cifar_folder(tmp_path / "cifar")
    (root / "data_batch_1").write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}, protocol=2))
    with pytest.raises(InputError, match=r"data_batch_1 asks to run .*system.* refused"):
        data.load(f"cifar10:{root}", Data())
    assert not (tmp_path / "attacked").exists()


def test_labels_out_of_range_and_damaged_files_are_named(tmp_path):
    root = cifar_folder(tmp_path / "cifar", labels=11)
    with pytest.raises(InputError, match=r"data_batch_1 has label 10; labels go from 0 to 9"):
        data.load(f"cifar10:{root}", Data())
    (root / "data_batch_1").write_bytes(b"\x80\x02nonsense")
    with pytest.raises(InputError, match=r"data_batch_1 is damaged"):
        data.load(f"cifar10:{root}", Data())


def test_digits_are_the_real_ones_upscaled():
    from sklearn.datasets import load_digits

    held = data.load("digits", Data())
    assert (held.channels, held.size, len(held.classes)) == (1, 24, 10)
    assert len(held.train) + len(held.val) + len(held.test) == 1797
    small = data.load("digits", Data(size=8))
    raw = torch.from_numpy((load_digits().images * 255 / 16).round().astype(np.uint8))
    everything = torch.cat([small.train.x, small.val.x, small.test.x])[:, 0]
    assert torch.equal(everything.long().sum(dim=0), raw.long().sum(dim=0))


@pytest.mark.cifar
@pytest.mark.skipif("STEPPE_CIFAR" not in os.environ, reason="set STEPPE_CIFAR to the archive of CIFAR-10 images")
def test_the_archive_of_sixty_thousand_images_is_read_directly():
    held = data.load(f"folder:{os.environ['STEPPE_CIFAR']}", Data(train=1000))
    assert (len(held.train), len(held.val), len(held.test), held.size) == (1000, 100, 10_000, 32)
    assert len(held.classes) == 10
