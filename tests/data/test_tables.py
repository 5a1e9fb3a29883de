"""Tables and lists next to images: which one counts, and the lists of well-known data sets."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.photos import count, load, tar_of, write

import steppe.config
import steppe.data
from steppe import InputError, data
from steppe.config import Data

Files = dict[str, int | str | Sequence[str]]
CLASSES: Files = {"cat": 10, "dog": 10}


def by_folder(i: int) -> str:
    return "cat" if i < 10 else "dog"


def swapped(i: int) -> str:
    return "dog" if i % 2 else "cat"


def csv(head: str, label: Callable[[int], object], start: int = 0, stop: int = 20) -> str:
    return f"{head}\n" + "".join(f"{i}.png,{label(i)}\n" for i in range(start, stop))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions.csv", csv("image,label", swapped)),
        ("my_preds.csv", csv("image,label", swapped)),
        ("submission.csv", csv("id,label", swapped)),
        ("SampleSubmission.CSV", csv("id,label", lambda i: "cat")),
        ("features.csv", csv("image,mean,target", lambda i: f"0.{i},{i % 2}")),
        ("stats.csv", csv("image,width,height", lambda i: f"{i},{i}")),
        ("ages.csv", csv("image,age", lambda i: i % 7)),
        ("others.csv", csv("image,label", swapped, 100, 120)),
        ("corrections.csv", csv("image,label", swapped, 0, 4)),
        ("test.csv", csv("image,label", swapped)),
        ("boxes.csv", csv("image,class", by_folder) + csv("image,class", swapped)),
        ("labels.csv", csv("image,label", by_folder)),
        ("numbers.csv", csv("image,label", lambda i: i // 10)),
    ],
)
@pytest.mark.parametrize("ending", ["", ".tar"])
def test_class_folders_count_next_to_a_table_that_does_not_list_the_training_images(
    tmp_path: Path, name: str, content: str, ending: str
) -> None:
    root = write(tmp_path / "x", CLASSES | {name: content})
    images = load(tar_of(root, tmp_path / "x.tar") if ending else root)
    assert (images.classes, count(images)) == (("cat", "dog"), 20)
    assert f"left out: the table {name}" in images.note


@pytest.mark.parametrize("name", ["labels.csv", "train.csv", "meta/labels.csv"])
def test_either_side_of_a_contradiction_can_be_chosen(tmp_path: Path, name: str) -> None:
    """The folders by renaming the table, the table by its path."""
    root = write(tmp_path / "x", CLASSES | {name: csv("image,label", lambda i: f"c{i % 4}")})
    with pytest.raises(
        InputError, match=f"labels it 'c0'; rename {name} to {name}.old.* or give folder:"
    ) as error:
        load(root)
    assert "\n" not in str(error.value)
    chosen = str(error.value).partition("or give ")[2].partition(" to train")[0]
    assert chosen == f"folder:{root / name}"
    assert data.load(chosen, Data(val=2)).classes == ("c0", "c1", "c2", "c3")
    (root / name).rename(root / f"{name}.old")
    assert load(root).classes == ("cat", "dog")
    assert "1 .old file" in load(root).note


def test_a_table_may_be_in_any_unicode(tmp_path: Path) -> None:
    root = write(tmp_path, {"photos": 20})
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (root / "t.csv").write_text(csv("image\tlabel", lambda i: "x").replace(",x", "\té"), encoding)
        (root / "t.csv").write_text(
            (root / "t.csv").read_text(encoding).replace("3.png\té", "3.png\t猫"), encoding
        )
        assert load(root).classes == ("é", "猫")


def test_folders_that_are_no_classes_do_not_win_over_a_table(tmp_path: Path) -> None:
    """A folder for each patient, or for each batch of a microscope."""
    files: Files = {f"patient{i}": 4 for i in range(5)}
    table = csv("file,diagnosis", lambda i: "ill" if i // 4 % 2 else "well")
    with pytest.raises(InputError, match="class folder 'patient0', and t.csv labels it 'well'"):
        load(write(tmp_path, files | {"t.csv": table}))
    assert load(tmp_path / "t.csv").classes == ("ill", "well")


def lines(start: int, stop: int, form: str) -> str:
    return "".join(form.format(i=i, c=i % 2, k=1 + i % 2) for i in range(start, stop))


FOOD = {c: [f"{c}/{b + i}" for i in range(10)] for c, b in (("apple pie", 100), ("ramen", 200))}
BIRDS = [f"{1 + c:03d}.B{c}/B{c}_{i}.jpg" for c in range(2) for i in range(10)]
PETS = [f"{c}_{i}" for c in ("Abyssinian", "beagle") for i in range(10)]
ILSVRC = "ILSVRC/Data/CLS-LOC"
LISTED: list[tuple[Files, tuple[int, int, int], tuple[str, ...], str]] = [
    (  # Tiny ImageNet
        {"train/n01/images": 8, "train/n02/images": 8, "val/images": 6, "test/images": 5}
        | {"train/n01/n01_boxes.txt": lines(0, 8, "{i}.png\t{i}\t1\t62\t57\n"), "wnids.txt": "n01\nn02\n"}
        | {"val/val_annotations.txt": lines(16, 22, "{i}.png\tn0{k}\t0\t32\t44\t62\n"), "words.txt": "n01\tcat\n"},
        (16, 0, 6), ("n01", "n02"), "5 images without a class (in test/images), 3 .txt files",
    ),
    (  # ILSVRC as on Kaggle
        {f"{ILSVRC}/train/n01": 8, f"{ILSVRC}/train/n02": 8, f"{ILSVRC}/val": 6, f"{ILSVRC}/test": 5}
        | {"LOC_val_solution.csv": "ImageId,PredictionString\n" + lines(16, 22, "{i},n0{k} 1 2 3 4 n09 5 6 7 8\n")}
        | {"ILSVRC/ImageSets/CLS-LOC/val.txt": lines(16, 22, "{i} {i}\n")}
        | {"LOC_train_solution.csv": "ImageId,PredictionString\n" + lines(0, 8, "{i},n01 1 2 3 4\n")},
        (16, 0, 6), ("n01", "n02"),
        "LOC_train_solution.csv, the list ILSVRC/ImageSets/CLS-LOC/val.txt, 5 images without a class (in ILSVRC",
    ),
    (  # Food-101
        {"images": [f"{name}.jpg" for names in FOOD.values() for name in names]}
        | {"meta/train.txt": "\n".join(name for names in FOOD.values() for name in names[:7])}
        | {"meta/test.txt": "\n".join(name for names in FOOD.values() for name in names[7:])}
        | {"meta/classes.txt": "apple pie\nramen\n", "meta/train.json": "{}"},
        (14, 0, 6), ("apple pie", "ramen"), "left out: 1 .json file, 1 .txt file",
    ),
    (  # CUB-200
        {"CUB/images": BIRDS, "CUB/images.txt": "".join(f"{n} {name}\n" for n, name in enumerate(BIRDS))}
        | {"CUB/image_class_labels.txt": "".join(f"{i} {1 + i // 10}\n" for i in range(20))}
        | {"CUB/classes.txt": "1 001.B0\n2 002.B1\n"}
        | {"CUB/train_test_split.txt": lines(0, 20, "{i} {c}\n"), "CUB/bounding_boxes.txt": "1 2.0 3.0 4.0 5.0\n"},
        (10, 0, 10), ("001.B0", "002.B1"), "left out: 1 .txt file",
    ),
    (  # lists of paths and labels
        {"images": 24, "train.txt": lines(0, 16, "images/{i}.png {c}\n")}
        | {"val.txt": lines(16, 20, "images/{i}.png {c}\n"), "test.txt": lines(20, 24, "images/{i}.png {c}\n")},
        (16, 4, 4), ("0", "1"), "",
    ),
    (  # of another machine, in the other order
        {"jpg": 24, "train.txt": lines(0, 16, "c{c}\t/data/jpg/{i}.png\n")}
        | {"test.txt": lines(16, 24, "c{c}\t/data/jpg/{i}.png\n")},
        (16, 0, 8), ("c0", "c1"), "",
    ),
    (  # FGVC-Aircraft
        {"data/images": 20, "data/images_variant_train.txt": lines(0, 14, "{i} Boeing 7{k}7\n")}
        | {"data/images_variant_test.txt": lines(14, 20, "{i} Boeing 7{k}7\n")},
        (14, 0, 6), ("Boeing 717", "Boeing 727"), "",
    ),
    (  # Oxford pets
        {"images": [f"{name}.jpg" for name in PETS], "annotations/trimaps": [f"{name}.png" for name in PETS]}
        | {"annotations/trainval.txt": "".join(f"{p} {1 + (p > 'b')} 1 1\n" for p in PETS[:7] + PETS[10:17])}
        | {"annotations/test.txt": "".join(f"{p} {1 + (p > 'b')} 1 1\n" for p in PETS[7:10] + PETS[17:])}
        | {"annotations/list.txt": "#Image CLASS-ID\n" + "".join(f"{p} {1 + (p > 'b')} 1 1\n" for p in PETS)},
        (14, 0, 6), ("1", "2"), "left out: 20 images without a class (in annotations/trimaps)",
    ),
    (  # Hugging Face: the same names in both parts
        {part: [f"{i:02d}.png" for i in range(n)] for part, n in (("train", 12), ("test", 6))}
        | {"train/metadata.jsonl": lines(0, 12, '{{"file_name": "{i:02d}.png", "label": "{c}", "objects": []}}\n')}
        | {"test/metadata.csv": "file_name,label\n" + lines(0, 6, "{i:02d}.png,{c}\n")},
        (12, 0, 6), ("0", "1"), "",
    ),
    (  # Roboflow
        {"train": 12, "valid": 4, "test": 4}
        | {f"{part}/_classes.csv": "filename, cat, dog\n" + lines(a, b, "{i}.png, {c}, {k}\n").replace(" 2", " 0")
           for part, a, b in (("train", 0, 12), ("valid", 12, 16), ("test", 16, 20))},
        (12, 4, 4), ("cat", "dog"), "",
    ),
    (  # CelebA: a table of attributes, here one, and one of parts
        {"img": 20, "list_attr.csv": "image_id,label\n" + lines(0, 20, "{i}.png,{c}\n")}
        | {"list_eval_partition.csv": "image_id,partition\n" + "".join(f"{i}.png,{i // 8}\n" for i in range(20))},
        (8, 8, 4), ("0", "1"), "",
    ),
    (  # class folders divided by a column
        CLASSES | {"m.csv": "path,label,data set\n" + "".join(
            f"{by_folder(i)}/{i}.png,{by_folder(i)},{'train' if i % 10 < 6 else 'valid' if i % 2 else 'test'}\n"
            for i in range(20))},
        (12, 4, 4), ("cat", "dog"), "test images: those of test in m.csv",
    ),
    (  # a table without a header
        {"img": 20, "labels.csv": "".join(f"{i}.png,{swapped(i)}\n" for i in range(20))},
        (20, 0, 0), ("cat", "dog"), "",
    ),
    (  # the ten splits of DTD put an image into several parts
        {"images/a": 10, "images/b": 10}
        | {f"labels/{part}.txt": "".join(f"a/{i}.png\nb/{i + 10}.png\n" for i in range(start, start + 5))
           for part, start in (("train1", 0), ("test1", 5), ("train2", 5), ("test2", 0))},
        (20, 0, 0), ("a", "b"), "left out: the lists labels/test1.txt, labels/test2.txt and 2 more",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "sizes", "classes", "note"), LISTED)
def test_the_lists_of_well_known_data_sets_are_read(
    tmp_path: Path, files: Files, sizes: tuple[int, ...], classes: tuple[str, ...], note: str
) -> None:
    root = write(tmp_path / "x", files)
    images = load(root)
    train, val, test = len(images.train), len(images.val), len(images.test)
    if sizes[1] == 0:
        train, val = train + val, 0
    if sizes[2] == 0:
        train, test = train + test, 0
    assert ((train, val, test), images.classes) == (sizes, classes), images.note
    assert note in images.note and (note or "left out" not in images.note)
    packed = load(tar_of(root, tmp_path / "x.tar"))
    assert packed.fingerprint == images.fingerprint and packed.note == images.note


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cars_train": 9, "cars_test": 5, "devkit/cars_train_annos.mat": "x"}, "without a class.*1 .mat file"),
        ({"img": 9, "scores.csv": csv("id,score", lambda i: i * 0.37)}, "has the columns id, score.*'label'"),
        ({"img": 9, "predictions.csv": csv("id,label", swapped)}, "only.*the table predictions.csv"),
        (
            {"train": 9, "train/metadata.jsonl": '{"file_name": "1.png", "text": "a photo"}\n' * 9},
            "list train/meta",
        ),
        (
            {"train/n01": 8, "train/n02": 8, "val": 4, "val.txt": lines(16, 20, "{i}.png {c}\n")},
            r"class '0' .* write the names of the training classes \(n01, n02",
        ),
        (
            {"img": 9, "list_eval_partition.csv": csv("image_id,partition", lambda i: i % 3)},
            "no class folders|only the class",
        ),
    ],
)
def test_what_has_no_classes_is_refused_and_what_is_not_read_is_named(
    tmp_path: Path, files: Files, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(write(tmp_path, files))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_folder_of_parts_has_any_number_of_tables_in_each(ending, tmp_path):
    pandas = pytest.importorskip("pandas")
    sizes = {"train/a": 12, "train/b": 8, "val/a": 5, "test/a": 7}
    start = 0
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        numbers = range(start, start + size)
        frame = pandas.DataFrame({"x": [i * 0.5 for i in numbers], "y": [i + 0.25 for i in numbers]})
        path = tmp_path / f"{name}.{ending}"
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        start += size
    data = steppe.data.load(f"table:{tmp_path}:target=y", steppe.config.Data())
    targets = [
        sorted((data.in_unit(part.y.double()) - 0.25).round().flatten().tolist())
        for part in (data.train, data.val, data.test)
    ]
    assert targets == [list(range(20)), list(range(20, 25)), list(range(25, 32))]
