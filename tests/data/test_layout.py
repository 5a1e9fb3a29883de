"""Layouts of downloaded data sets: parts, nesting, tables, other files; unclear ones are refused."""

import re
from pathlib import Path

import pytest
from support.photos import class_folders, count, load, picture, tar_of, write

from steppe import InputError
from steppe.data.sources._part_names import part_of


def parted(*names: str, inner: str = "") -> dict[str, int | str]:
    return {
        f"{name}{inner}/{label}": n
        for name, n in zip(names, (8, 4, 3, 3), strict=False)
        for label in ("cat", "dog")
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Train", "train"), ("TRAINING", "train"), ("train_set", "train"), ("trainset", "train"), ("trn", "train"),
        ("Training Set", "train"), ("train-images", "train"), ("TrainingData", "train"), ("trainLabels", "train"),
        ("val", "val"), ("Valid", "val"), ("validation_set", "val"), ("dev", "val"), ("testing", "test"),
        ("TestSet", "test"), ("test1", "test"), ("eval", "eval"), ("cat", None), ("restaurant", None),
        ("strain", None), ("contest", None), ("train_test", None),
    ],
)  # fmt: skip
def test_the_usual_words_name_parts(name: str, part: str | None) -> None:
    assert part_of(name) == ((part, ()) if part else None)


@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        (parted("Train", "Test"), (16, 0, 8)),
        (parted("training", "testing"), (16, 0, 8)),
        (parted("Training Set", "Test Set"), (16, 0, 8)),
        (parted("TRAIN", "TEST", "Valid"), (16, 6, 8)),
        (parted("train", "test", "dev"), (16, 6, 8)),
        (parted("train", "test", "eval"), (16, 6, 8)),
        (parted("train", "eval", "val"), (16, 6, 8)),
        (parted("train", "valid"), (16, 0, 8)),
        (parted("archive/dataset/train", "archive/dataset/test", "archive/dataset/val"), (16, 6, 8)),
        (parted("seg_train/seg_train", "seg_test/seg_test") | {"seg_pred/seg_pred": 3}, (16, 0, 8)),
        (parted("train", "test", inner="/images"), (16, 0, 8)),
        (parted("images/train", "images/test") | {"annotations/a.xml": "x"}, (16, 0, 8)),
        ({"train/cat/images": 8, "train/dog/images": 8, "val/images": 5, "test/images": 4}, None),
        ({"cat/images": 10, "dog/images": 10}, None),
        (parted("train") | {"test": 9}, None),
        ({"bus": 8, "car": 8, "train": 8}, None),
        ({"airport": 8, "train_station": 8}, None),
        ({"bullet_train": 8, "steam_train": 8}, None),
        ({"1": 8, "2": 8, "README.md": "x"}, None),
    ],
)
def test_folders_give_parts_and_classes(
    tmp_path: Path, files: dict[str, int | str], sizes: tuple[int, ...] | None
) -> None:
    """Every image is in a part, or counted in the note."""
    images = load(write(tmp_path, files))
    assert not {"train", "Train", "test", "val"} & {*images.classes} or "bus" in images.classes
    if sizes and sizes[1]:
        assert (len(images.train), len(images.val), len(images.test)) == sizes
    elif sizes:
        assert (len(images.train) + len(images.val), len(images.test)) == (sizes[0], sizes[2])
    total = sum(n for n in files.values() if isinstance(n, int))
    left = sum(map(int, re.findall(r"(\d+) images without a class", images.note)))
    assert count(images) + left == total, images.note
    assert load(tar_of(tmp_path, tmp_path.with_suffix(".tar"))).note == images.note


HEAD = "id,label\n"


def rows(start: int, stop: int, ending: str = "", folder: str = "") -> str:
    return "".join(f"{folder}{i}{ending},{'cat' if i % 2 else 'dog'}\n" for i in range(start, stop))


@pytest.mark.parametrize(
    ("files", "used", "note"),
    [
        ({"train": 20, "train.csv": HEAD + rows(0, 20)}, 20, ""),
        ({"train": 20, "labels.csv": "filename,class\n" + rows(0, 20, ".png")}, 20, ""),
        ({"train/train": 20, "test/test": 5, "train.csv": HEAD + rows(0, 20)}, 20,
         "5 images without a class (in test/test)"),
        ({"images": 20, "meta.csv": "w,image_id,label\n" + "".join(f"9,{i},{'xy'[i % 2]}\n" for i in range(20))},
          20, ""),
        ({"train": 20, "test": 4, "train.csv": HEAD + rows(0, 20), "sample_submission.csv": HEAD + rows(20, 24)},
          20,         "the table sample_submission.csv"),
        ({"train": 20, "test": 4, "train.csv": HEAD + rows(0, 20), "test.csv": "id,width\n20,5\n21,6\n"}, 20,
         "the table test.csv"),
        ({"train": 20, "test": 4, "train.csv": HEAD + rows(0, 20), "test.csv": HEAD + rows(20, 24)}, 24, ""),
        ({"images": 24, "train.csv": HEAD + rows(0, 16), "valid.csv": HEAD + rows(16, 20),
          "test.csv": HEAD + rows(20, 24)}, 24, "validation images: those that the table has for val"),
        ({"images": 20, "train.csv": HEAD + rows(0, 18) + "99,cat\n18,\n"}, 18,
         "2 rows of train.csv without an image"),
        ({"a": 20, "t.csv": "image;breed\n" + rows(0, 20, ".png", "a/").replace(",", ";")}, 20, ""),
        ({"a": 20, "t.csv": "path,label,split\n" + "".join(f"{i},{'xy'[i % 2]},{'train' if i < 14 else 'test'}\n"
                                                           for i in range(20))}, 20, "table has for test"),
        ({"train": 20, "train.csv": HEAD + rows(0, 20), "train_sizes.csv": "id,w,h\n1,2,3\n2,3,4\n"}, 20,
         "the table train_sizes.csv"),
        ({".": 20, "labels.csv": 'id,"a\nlabel"\n' + rows(0, 20)}, 20, ""),
        ({"x/y": 20, "x/labels.csv": "\ufeffimage_id,label,n\n" + rows(0, 20).replace("\n", ",?\n") + "1\n"}, 20,
         "1 row of x/labels.csv"),
        ({"photos": 20, "w.csv": "Image,Id\n" + rows(0, 20, ".png")}, 20, ""),
        ({"scans_images_part_1": 9, "scans_images_part_2": 9, "m.csv": HEAD + rows(0, 18)}, 18, ""),
        ({"images_001/images": 9, "images_002/images": 9, "m.csv": HEAD + rows(0, 18)}, 18, ""),
        ({"a": 20, "t.csv": "image,MEL,NV\n" + "".join(f"{i},{i % 2}.0,{1 - i % 2}.0\n" for i in range(20))},
          20, ""),
        ({"a": 20, "t.csv": "class id,file,labels\n" + "".join(f"{i % 2},{i},{'xy'[i % 2]}\n" for i in range(20))},
          20, ""),
        ({"Train/0": 6, "Train/1": 6, "Test": 8, "Test.csv": "Width,ClassId,Path\n" +
          "".join(f"9,{i % 2},Test/{i}.png\n" for i in range(12, 20))}, 20, "test images: the folder Test"),
    ],
)  # fmt: skip
def test_a_table_labels_images_without_class_folders(
    tmp_path: Path, files: dict[str, int | str], used: int, note: str
) -> None:
    images = load(write(tmp_path, files))
    assert len(images.classes) == 2 and count(images) == used, images.note
    assert note in images.note


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (parted("train", "Training"), "folders Training, train"),
        (parted("test", "val"), "test, val, which are not clearly parts"),
        ({"cat": 4, "dog": 4, "test": 4}, "test, cat, dog, which are not clearly parts"),
        ({"train/steam": 4, "train/diesel": 4, "bus": 4}, "train, bus, which are not clearly"),
        (parted("a_train", "b_test"), "a_train, b_test, which are not clearly"),
        (parted("train", "test", "val") | {"eval/cat": 3, "eval/dog": 3}, "images for eval, test and val"),
        ({"cat/train": 4, "cat/test": 4, "dog/train": 4, "dog/test": 4}, "folders cat, dog, and in them t"),
        ({"all/cat": 4, "all/dog": 4, "cat": 4, "dog": 4}, "folders all, cat, dog, and in them cat"),
        (parted("tr", "te"), "folders te, tr, and in them cat, dog"),
        ({f"{c}/{i}": 4 for c in ("flu", "well") for i in ("images", "masks")}, "and in them images, masks"),
        (parted("train", "cis_test", "trans_test", "cis_val"), "cis_test, cis_val, train, trans_test, which are"),
        (parted("train", "val", "easy-test", "hard test"), "easy-test, hard test, train, val, which are not cl"),
        (parted("train", "source_val"), "source_val, train, which are not cl"),
        ({"valid": 4, "invalid": 4}, "valid, invalid, which are not clearly"),
        ({"train": 9, "test": 9}, "no class folders for training.*or a CSV file"),
        ({"A": 9, "B": 9, "m.csv": HEAD + rows(0, 18)}, "m.csv labels it 'dog'; rename m.csv to m.csv.old to"),
        ({"images": 8, "annotations/trimaps": 8}, "annotations is no class by its name"),
        ({"birds/a": 4, "birds/b": 4, "segmentations/a": 4, "segmentations/c": 4}, "segmentations is no class"),
        ({"train/images": 8, "train/masks": 8}, "masks is no class"),
        ({"VOC/JPEGImages": 8, "VOC/SegmentationClass": 8}, "SegmentationClass is no class"),
        ({"img": 8, "masks_png": 8}, "masks_png is no class"),
        ({f"train/{c}": 4 for c in ("Cat", "Dog")} | {f"test/{c}": 3 for c in ("cat", "dog")}, "'cat' differs in"),
        ({"train/cat ": 4, "train/dog": 4, "val/cat": 3, "val/dog": 3}, "'cat ' differs in .*give both one name"),
        ({"a": 9, "m.csv": "id,age,sex\n" + "".join(f"{i},1,m\n" for i in range(9))}, "columns id, age, sex"),
        ({"train": 3, "test": 3, "labels.csv": HEAD + "0,x\n5,y\n"}, "no class folders|only the class"),
        (parted("train", inner="/images") | {"test/cat/images": 3}, "class 'dog' of .* has no test images"),
        ({f"train/{c}/images": 4 for c in ("flu", "well")} | {"val/images/flu/images": 3}, "'well' .* no test"),
        ({"a": 4, "x.csv": HEAD + rows(0, 4), "y.csv": HEAD + rows(1, 4) + "0,cat\n"}, "and x.csv as .dog."),
        ({"a": 4, "x.csv": HEAD + rows(0, 4) + "0,cat\n"}, "and another row as 'dog'; keep one"),
    ],
)  # fmt: skip
def test_unclear_layouts_are_refused_in_one_line(
    tmp_path: Path, files: dict[str, int | str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(write(tmp_path, files))
    assert "\n" not in str(error.value)


def test_a_table_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part, {".": 4})
    write(tmp_path, {"labels.csv": HEAD + rows(0, 4)})
    with pytest.raises(InputError, match="which may be test/0.png or train/0.png; remove one"):
        load(tmp_path)


def test_classes_packed_once_more_into_a_folder_of_the_same_name_are_left_out(tmp_path: Path) -> None:
    images = load(write(tmp_path / "cells", {f"{top}{c}": 6 for top in ("", "cells/") for c in ("flu", "well")}))
    assert images.classes == ("flu", "well") and count(images) == 12
    assert "12 images without a class (in cells/flu, cells/well)" in images.note


@pytest.mark.parametrize(
    "classes", [("mask", "no_mask"), ("labels", "text"), ("images", "tables"), ("part1", "part2"), ("10", "2")]
)
def test_classes_may_have_the_names_of_masks_and_numbers(tmp_path: Path, classes: tuple[str, ...]) -> None:
    assert load(write(tmp_path, dict.fromkeys(classes, 6))).classes == classes


def test_files_of_systems_and_other_kinds_are_counted_once(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos")
    for name in (
        "__MACOSX/cat",
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
        ".Trash-1000",
        "@eaDir",
    ):
        (root / name).mkdir(parents=True)
    class_folders(root / "@eaDir" / "cat")
    class_folders(root / "cat" / "@eaDir")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "cat/._000.png", "cat/Thumbs.db"):
        (root / name).write_bytes(b"x")
    for ending in ("jfif", "jpe", "JPG", ""):
        picture(7).save(root / "cat" / f"more.{ending}".rstrip("."), "JPEG")
    (root / "dog" / "LICENSE").write_text("text")
    (root / "dog" / "a.txt").write_text("text")
    images = load(root)
    assert images.classes == ("cat", "dog") and count(images) == 24
    assert "left out: 1 extensionless file, 1 .txt file, 12 of the system (" in images.note.replace(
        "1 .txt file, 1 extensionless file", "1 extensionless file, 1 .txt file"
    )
    assert load(tar_of(root, tmp_path / "a.tar")).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "names",
    [
        ("thumbnails/a.png", "thumbnails/b.jpg"),
        ("thumbs/cat/a.png", "thumbs/dog/b.png"),
        ("Thumbnails/cat/thumb_a.png",),
        ("cat/thumbs/a.png", "cat/thumbs/c-150x150.png"),
        ("dog/_thumb/b.png",),
    ],
)
@pytest.mark.parametrize("top", ["", "train/"])
def test_thumbnails_of_the_images_are_passed_over_and_counted(
    tmp_path: Path, names: tuple[str, ...], top: str
) -> None:
    originals = [f"{label}/{stem}.png" for label, stems in (("cat", "acef"), ("dog", "bdgh")) for stem in stems]
    for number, name in enumerate([*originals, *names]):
        path = tmp_path / "photos" / top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path.with_suffix(".png"))
    images = load(tmp_path / "photos")
    assert images.classes == ("cat", "dog") and count(images) == 8
    folder = next(part for part in names[0].split("/") if "thumb" in part.lower())
    assert f"{len(names)} thumbnail" in images.note and f"{folder})" in images.note


@pytest.mark.parametrize(
    "files", [{"cat": 6, "thumbs": 6}, {"cat": 6, "dog": 6, "thumbs": 6}, {"palm": 3, "thumb": 9}]
)
def test_a_class_may_be_called_thumbs(tmp_path: Path, files: dict[str, int | str]) -> None:
    """Its images are numbered as those of the other classes."""
    root = tmp_path / "photos"
    for number, name in enumerate(f"{label}/image_{i}.png" for label, n in files.items() for i in range(int(n))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    images = load(root)
    assert images.classes == tuple(files) and count(images) == sum(map(int, files.values()))
