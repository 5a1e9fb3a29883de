"""Tables with a target column: what cells mean, what the training rows decide, and the errors."""

import builtins
import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steppe import InputError, data
from steppe.config import Data, Run, parse_dataset
from steppe.data.sources.formats.columns import MISSING, Column, read_columns
from steppe.data.sources.formats.targets import make_target

WORDS = (
    st.text("abcxyzäß ,;'\"\n|", min_size=1, max_size=6).map(str.strip).filter(lambda s: s.lower() not in MISSING)
)
NUMBERS = st.one_of(st.integers(-99, 99), st.floats(-1e6, 1e6)).map(repr)


def write(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_csv_file_has_the_cells_that_were_written(tmp_path: Path, data: st.DataObject) -> None:
    width, count = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 6))
    kinds = [data.draw(st.sampled_from([WORDS, NUMBERS])) for _ in range(width)]
    rows = [[data.draw(st.one_of(kind, st.sampled_from(["", "NA", "?"]))) for kind in kinds] for _ in range(count)]
    header = [f"h{i}" for i in range(width)]
    columns = read_columns(write(tmp_path / "t.csv", header, rows, data.draw(st.sampled_from(",;\t"))))
    assert list(columns) == header
    for i, (column, kind) in enumerate(zip(columns.values(), kinds, strict=True)):
        texts = [row[i] for row in rows]
        assert column.cells == tuple(None if t.lower() in MISSING else t for t in texts)
        if kind is NUMBERS and any(t.lower() not in MISSING for t in texts):
            expected = [math.nan if t.lower() in MISSING else float(t) for t in texts]
            assert column.numbers is not None
            assert np.array_equal(column.numbers, expected, equal_nan=True)


def test_jsonl_parquet_and_csv_of_one_table_are_one_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = {"a": [1.5, 2.0, None], "b": ["x", None, "z"], "c": [1, 2, 3]}
    parquet.write_table(pyarrow.table(content), tmp_path / "t.parquet")
    rows = [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cells = [["" if v is None else str(v) for v in row.values()] for row in rows]
    tables = [read_columns(write(tmp_path / "t.csv", list(content), cells))]
    tables += [read_columns(tmp_path / name) for name in ("t.jsonl", "t.parquet")]
    assert tables[0] == tables[1] == tables[2]
    (tmp_path / "g.csv").write_text("a;b\n1,5;x\n-2;y\n")  # decimal commas
    assert read_columns(tmp_path / "g.csv")["a"].numbers.tolist() == [1.5, -2]
    (tmp_path / "h.csv").write_text("1,2\n3,4\n")  # no header
    assert {n: c.cells for n, c in read_columns(tmp_path / "h.csv").items()} == {
        "column 1": ("1", "3"),
        "column 2": ("2", "4"),
    }


CITIES = ["Oslo", "Rome", "", "Oslo", "Bern", "Rome"] * 10


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        [
            f"id{i}",
            f"{rng.normal(80, 20):.3f}",
            CITIES[i],
            "" if i % 7 == 0 else str(1950 + i),
            f"{rng.normal(300, 50):.2f}",
        ]
        for i in range(60)
    ]
    return write(tmp_path / "houses.csv", ["id", "area", "city", "year", "price"], rows)


def test_inputs_are_standardised_or_one_hot_by_the_training_rows(houses: Path) -> None:
    """Restated on the cells: each training row is identified by its area."""
    loaded = data.load(f"table:{houses}:target=price,unit=EUR", Data())
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (43, 5, 12)
    assert (loaded.task, loaded.outputs, loaded.unit, loaded.inputs) == ("regression", 1, "EUR", {"features": 7})
    rows = list(csv.DictReader(io.StringIO(houses.read_text())))
    area, about = {c["column"]: c for c in loaded.preparation["inputs"]}["area"], loaded.preparation["target"]
    for part in (loaded.train, loaded.val, loaded.test):
        areas = part.x[:, 0].double() * area["std"] + area["mean"]
        mine = [min(rows, key=lambda r, a=a: abs(float(r["area"]) - a)) for a in areas.tolist()]
        if part is loaded.train:
            train = mine
        columns = []
        for name in ("area", "year"):
            values = np.array([float(r[name]) for r in train if r[name]])
            z = [(float(r[name]) - values.mean()) / values.std() if r[name] else 0 for r in mine]
            columns.append(z)
        one_hot = [[r["city"] == city for r in mine] for city in ("Bern", "Oslo", "Rome", "")]
        expected = np.array([columns[0], *one_hot, columns[1], [r["year"] == "" for r in mine]]).T
        assert np.allclose(part.x, expected, atol=1e-5)
        prices = np.array([[float(r["price"])] for r in mine])
        assert np.allclose(loaded.in_unit(part.y), prices, rtol=1e-5)
    prices = np.array([float(r["price"]) for r in train])
    assert loaded.target_mean == pytest.approx([prices.mean()]) and loaded.target_std == pytest.approx(
        [prices.std()]
    )
    assert about["unit"] == "EUR" and loaded.preparation["predicts"] == ["price"]
    assert "column 'id' (text, 60 different values)" in loaded.note


def test_all_splits_of_a_table_have_the_same_inputs(tmp_path: Path) -> None:
    cells = [[f"city {i}" if i % 9 == 0 else "Rome", "" if i == 5 else f"{i}", str(i % 2)] for i in range(60)]
    path = write(tmp_path / "rare.csv", ["city", "area", "y"], cells)
    loaded = [data.load(f"table:{path}:target=y", Data(split_seed=seed, val=0.4, train=15)) for seed in range(6)]
    assert len({tuple(d.inputs.items()) for d in loaded}) == 1
    assert len({str([one.get("values") for one in d.preparation["inputs"]]) for d in loaded}) == 1
    # only means and deviations are those of the training rows
    assert len({str(d.preparation["inputs"][1]["mean"]) for d in loaded}) > 1


def test_test_rows_change_nothing_that_is_learned_from(tmp_path: Path, houses: Path) -> None:
    rows = [*csv.reader(io.StringIO(houses.read_text()))]
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "train.csv", rows[0], rows[1:41])
    write(folder / "test.csv", rows[0], rows[41:])
    first = data.load(f"table:{folder}:target=price", Data())
    changed = [[*row[:1], "1e6", "Atlantis", "1", "1e9"] for row in rows[41:]]
    write(folder / "test.csv", rows[0], changed)
    second = data.load(f"table:{folder}:target=price", Data())
    assert torch.equal(first.train.x, second.train.x) and torch.equal(first.val.y, second.val.y)
    assert first.preparation == second.preparation and first.fingerprint != second.fingerprint
    assert len(second.test) == 20 and not second.test.x[:, 1:5].any()  # a city that training has not
    write(folder / "test.csv", rows[0][:4], [row[:4] for row in rows[41:]])  # Kaggle's, without prices
    third = data.load(f"table:{folder}:target=price", Data())
    assert len(third.test) == 8 and "left out: test.csv, without a column price" in third.note


def test_a_column_of_parts_divides_the_rows(tmp_path: Path) -> None:
    rows = [[str(i), "dev" if i % 3 == 1 else "Train" if i % 3 else "test", str(i % 2)] for i in range(30)]
    path = write(tmp_path / "t.csv", ["a", "split", "y"], rows)
    loaded = data.load(f"table:{path}:target=y", Data())
    assert (len(loaded.train), len(loaded.val), len(loaded.test), loaded.classes) == (10, 10, 10, ("0", "1"))
    assert loaded.inputs == {"features": 1}
    drop = data.load(f"table:{path}:target=y,categories=a", Data())
    assert drop.train.x.shape == (10, 10) and drop.test.x.sum() == 0


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        ([["a", "b", "a", "b"]], "classification", ("a", "b")),
        ([["1.0", "2", "2", "1"] * 2], "classification", ("1", "2")),
        ([["10", "9", "9", "10"] * 2], "classification", ("9", "10")),
        ([["1", "2", "3", "4"]], "regression", ()),
        ([["1.5", "2", "2", "1.5"] * 2], "regression", ()),
        ([["a|b", "b", "", "c"]], "multi-label", ("a", "b", "c")),
        ([["a, b", "b", "a", "b, a"]], "multi-label", ("a", "b")),
        ([["Paris, France", "Rome, Italy"]], "classification", ("Paris, France", "Rome, Italy")),
        ([["1", "0", "1"], ["0", "0", "1"]], "multi-label", ("c0", "c1")),
        ([["1", "0", "1"], ["0", "1", "0"]], "classification", ("c0", "c1")),
        ([["cat", "dog"], ["in", "out"]], "multi-label", ("cat", "dog", "in", "out")),
        ([["1.5", "2"], ["3", "4"]], "regression", ()),
    ],
)
def test_the_task_is_that_of_the_values(cells: list[list[str]], task: str, classes: tuple[str, ...]) -> None:
    columns = [Column(f"c{i}", tuple(c or None for c in column)) for i, column in enumerate(cells)]
    target = make_target(columns, {}, "t")
    assert (target.task, target.classes) == (task, classes)
    if task == "multi-label" and len(cells) == 1:
        labels = [{x.strip() for x in c.replace("|", ",").split(",")} - {""} for c in cells[0]]
        assert target.y.tolist() == [[float(name in items) for name in classes] for items in labels]
    if task == "regression":
        assert target.y.tolist() == [[float(c) for c in row] for row in zip(*cells, strict=True)]
        assert make_target(columns[:1], {"task": "classification"}, "t").task == "classification"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b\n1,2\n", "", "needs the column to predict; write table:.*:target=COLUMN, one of a, b"),
        ("a,b\n1,2\n", ":target=c", "unknown column 'c'"),
        ("a,b\n1,2\n3\n", ":target=b", "line 3 of .* has 1 cells, and the first line has 2"),
        ("a,a\n1,2\n", ":target=a", "two columns 'a'; rename one"),
        ("a,b\n", ":target=a", "has no rows"),
        ("a,b\n1,x\n2,x\n", ":target=b", "'b' of .* has 1 value; give a column with two classes"),
        ("a,b\n1,x\n2,y\n", ":target=b,task=regression", "'b' of .* has 'x', which is no number"),
        ("a,b\n1,x\n2,y\n", ":target=b,task=guess", "unknown task of .* 'guess'"),
        ("a,b\n1,x\n2,y\n", ":taget=b", "unknown option of data set table 'taget'; did you mean 'target'"),
        ("a,b\n1,x\n2,y\n", ":target=b,drop=a", "has no columns to predict b from"),
        ("a,b\ninf,x\n2,y\n", ":target=b", "column 'a' of .* is infinite in row 1"),
        ("a,b\n1,\n2,\n", ":target=b", "has 0 values"),
        ("s,a,b\nx,1,1.5\ny,2,2\n", ":target=b,split=s", "column 's' has 'x'; write train, val or test"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, content: str, options: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        data.load(f"table:{path}{options}", Data())
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="needs pyarrow; run pip install 'steppe\\[tables\\]'"):
        data.load(f"table:{tmp_path}/t.parquet:target=a", Data())


@given(
    st.sampled_from(["table", "images"]),
    st.text("ab./:=, ", min_size=1, max_size=12).filter(lambda s: not s.startswith(":") and ":" not in s[-1:]),
    st.dictionaries(st.sampled_from(["task", "unit", "split"]), st.text("ab +*,.", min_size=1), min_size=1),
)
@settings(max_examples=50)
def test_a_name_has_its_path_and_options(kind: str, path: str, options: dict[str, str]) -> None:
    if ":" in path and "=" in path.split(":", 1)[1]:
        return  # a path that looks like options
    text = f"{kind}:{path}:" + ",".join(f"{k}={v}" for k, v in options.items())
    assert parse_dataset(text) == (kind, path, options)
    reordered = f"{kind}:{path}:" + ",".join(f"{k}={options[k]}" for k in reversed(options))
    assert Run(dataset=text).digest() == Run(dataset=reordered).digest()
