"""Images by a table of file names: classes, several labels, numbers, parts, and the errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steppe import InputError, data
from steppe.config import Data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images, each of the grey level of its number."""
    folder = tmp_path / "photos"
    (folder / "img").mkdir(parents=True)
    for i in range(20):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(folder / "img" / f"{i:03}.png")
    return folder


def rows_of(loaded: data.DataSet) -> dict[int, list[float]]:
    """The target of each image, by its number."""
    parts = (loaded.train, loaded.val, loaded.test)
    return {int(x[0, 0, 0]) // 10: y.tolist() for part in parts for x, y in zip(part.x, part.y, strict=True)}


def test_two_labels_each_by_a_separator_by_columns_and_by_rows(photos: Path) -> None:
    names = ("cat", "dog", "in", "out")
    labels = {i: {names[i % 2], names[2 + i % 3 % 2]} for i in range(20)}
    expected = {i: [float(n in labels[i]) for n in names] for i in labels}
    lines = [f"{i:03}.png,{' | '.join(sorted(labels[i]))}" for i in labels]
    (photos / "bar.csv").write_text("\n".join(["file,tags", *lines]))
    (photos / "two.csv").write_text(
        "\n".join(["file,animal,place", *(f"img/{i:03}.png,{','.join(sorted(labels[i]))}" for i in labels)])
    )
    lines = [f"{i:03}," + ",".join(str(int(n in labels[i])) for n in names) for i in labels]
    (photos / "hot.csv").write_text("\n".join([f"file,{','.join(names)}", *lines]))
    (photos / "long.csv").write_text(
        "\n".join(["file,label", *(f"{i:03}.png,{t}" for i in labels for t in labels[i])])
    )
    for name in ("bar.csv", "two.csv:label=animal+place", "hot.csv", "long.csv:label=label"):
        for _ in range(2):  # decoded, then cached
            loaded = data.load(f"images:{photos}/{name}", Data(val=2, augment=("none",)))
            assert (loaded.task, loaded.classes, loaded.outputs) == ("multi-label", names, 4), name
            assert rows_of(loaded) == expected, name
            assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (14, 2, 4)
    assert loaded.inputs == {"channels": 1, "size": 8}


def test_classes_numbers_and_parts(photos: Path) -> None:
    lines = [f"{i:03}.png,{'ab'[i % 2]},{i / 4},{('train', 'val', 'test')[i % 3]}" for i in range(20)]
    (photos / "t.csv").write_text("\n".join(["name,kind,age,split", *lines]))
    kinds = data.load(f"images:{photos}/t.csv:label=kind", Data())
    assert (kinds.task, kinds.classes) == ("classification", ("a", "b"))
    assert rows_of(kinds) == {i: i % 2 for i in range(20)}
    assert (len(kinds.train), len(kinds.val), len(kinds.test)) == (7, 7, 6)
    ages = data.load(f"images:{photos}/t.csv:label=age,unit=years", Data(augment=("flip",)))
    assert (ages.task, ages.unit, ages.classes, ages.outputs) == ("regression", "years", (), 1)
    train = torch.tensor([i / 4 for i in range(0, 20, 3)])
    assert ages.target_mean == pytest.approx([float(train.mean())])
    assert ages.target_std == pytest.approx([float(train.std(correction=0))])
    assert ages.in_unit(ages.test.y)[:, 0].tolist() == pytest.approx([i / 4 for i in range(2, 20, 3)])
    with pytest.raises(InputError, match="data.augment is cutmix, which mixes classes, and .* is a regression"):
        data.load(f"images:{photos}/t.csv:label=age", Data())
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(
        {"name": [f"{i:03}.png" for i in range(20)], "kind": ["a", "b"] * 10}
    )
    parquet.write_table(table, photos / "t.parquet")
    assert rows_of(data.load(f"images:{photos}/t.parquet", Data())) == rows_of(kinds)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("file,a,b\n001.png,x,1.5\n", "", "has the columns a, b; write images:.*:label=COLUMN"),
        ("file,a\nnowhere.png,x\n", "", "names no image of the folder around it in its columns file, a"),
        ("file,a\n001.png,x\n", ":image=a", "in column 'a'; put it beside the images"),
        ("file,a\n001.png,x\n002.png,x\n", ":label=b", "unknown column 'b'"),
        ("file,a\n001.png,1\n001.png,2\n", ":label=a", "has a 1 and 2 for one image"),
        ("file,a\nbad.png,x\n001.png,y\n", "", "image img/bad.png in .* cannot be read"),
    ],
)
def test_errors_are_one_line(photos: Path, content: str, options: str, message: str) -> None:
    (photos / "img/bad.png").write_bytes(b"no image")
    (photos / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        data.load(f"images:{photos}/t.csv{options}", Data())
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_list(photos: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give the table of file names in it, or write folder:"):
        data.load(f"images:{photos}", Data())
