"""The ledger is what its records give, by the rule it states."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from steppe.cli.main import main
from steppe.config import recipes
from steppe.report.statistics import paired_difference

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def ledger() -> ModuleType:
    return script("make_ledger")


def test_the_pages_are_what_the_records_give(ledger):
    assert (DOCS / "ledger.md").read_text() == ledger.page(), "run python docs/make_ledger.py"
    assert (DOCS / "results/reproduction.md").read_text() == ledger.results(), "run python docs/make_ledger.py"


def test_every_printed_accuracy_has_a_line(ledger):
    page = (DOCS / "ledger.md").read_text()
    cells = 0
    for name in recipes.names():
        recipe = recipes.load(name)
        for data, model, row, *numbers in recipe.published.rows:
            if {"accuracy", "top-1"} & {*recipe.published.columns}:
                assert f"| {data} | {model} | {row} | {numbers[0]:.2f}" in page
                cells += 1
    assert f"\n{cells} cells: " in page


@pytest.mark.parametrize(
    ("published", "ours", "full", "verdict"),
    [
        (1.0, [0.5, 1.5, 1.1], True, "agrees"),
        (9.0, [0.5, 1.5, 1.1], True, "differs"),
        (-1.0, [0.1, -0.1, 0.3], True, "differs"),
        (9.0, [1.0, 1.1, 1.2], False, "agrees"),
        (-0.1, [1.0, 1.1, 1.2], False, "differs"),
        (1.0, [-1.0, 0.1, 1.2], False, "undecided"),
        (1.0, [1.0], False, "undecided"),
        (1.0, [1.0], True, "undecided"),
    ],
)
def test_the_rule(ledger, published, ours, full, verdict):
    d = paired_difference(ours, [0.0] * len(ours))
    assert ledger.verdict(published, d, full=full) == verdict
    assert ledger.verdict(published, None, full=full) == "not run"


def test_gains_are_over_seeds_that_both_have(ledger):
    d = ledger.gain({0: 5.0, 1: 6.0, 7: 50.0}, {0: 4.0, 1: 4.0, 9: 0.0})
    assert (d.mean, d.n) == (1.5, 2)
    assert ledger.gain({0: 1.0}, {1: 1.0}) is None


def test_the_arithmetic_of_a_run_is_counted(ledger):
    """ResNet-32's 69.1 million multiply-adds (the OKDPH reference), 2 networks, 300 epochs of 50,000 images."""
    recipe = recipes.load("okdph-table3")
    cost = ledger.cost(recipe, "cifar10", "resnet32-okdph", "dml-2")
    assert cost == pytest.approx(6 * 69.1e6 * 50_000 * 300 * 2 / 1e18, rel=0.01)
    tenth = ledger.cost(recipes.load("okdph-table4-10"), "cifar10", "densenet40-12", "plain")
    assert tenth == pytest.approx(6 * 72.4e6 * 5_000 * 300 / 1e18, rel=0.01)


def test_every_record_is_named_and_stands_for_rows_of_a_table(ledger):
    index = ledger.index()
    files = {f.stem for f in (DOCS / "records").glob("*.json")}
    assert files == {*index["records"], *index["others"]}
    for name, about in index["records"].items():
        recipe = recipes.load(about["recipe"])
        assert about["data"] in recipe.data and about["model"] in recipe.models
        assert {*about["rows"].values()} <= {*recipe.methods}
        run = {r["method"] for r in ledger.runs(name)}
        assert {*about["rows"]} <= run
    for one in index["questions"]:
        for pair in one.get("pairs", ()):
            assert all(ledger.accuracies(one["records"], m) for m in pair), pair


@pytest.mark.slow
def test_a_comparison_is_packed_without_paths_or_times(tmp_path, ledger):
    options = (
        "--methods plain dml --models simple-cnn --epochs 1 --seeds 0 --data.train 60 --data.test 40 --watch.test"
    )
    assert main(["compare", *options.split(), "--out", str(tmp_path / "a")]) == 0
    record = script("pack_records").packed(tmp_path / "a")
    assert [r["method"] for r in record["runs"]] == ["plain", "dml"]
    result = [json.loads(f.read_text()) for f in (tmp_path / "a" / "runs").glob("*/result.json")]
    assert sorted(r["last"] for r in record["runs"]) == sorted(
        round(100 * r["test"]["last"]["accuracy"], 4) for r in result
    )
    (dml,) = [r for r in record["runs"] if r["method"] == "dml"]
    assert dml["best_of_all"] == max(dml["last"], *dml["outputs"].values())
    assert dml["passes"] == [2.0, 2.0, 1.0]
    text = json.dumps(record)
    assert str(tmp_path) not in text and "seconds" not in text


@pytest.mark.slow
def test_further_seeds_are_packed_with_the_first_and_nothing_twice(tmp_path):
    options = "--methods plain --models simple-cnn --epochs 1 --data.train 60 --data.test 40"
    for name, more in (("a", "--seeds 0"), ("b", "--seeds 1"), ("c", "--seeds 2 --data.test 30")):
        assert main(["compare", *options.split(), *more.split(), "--out", str(tmp_path / name)]) == 0
    packed = script("pack_records").packed
    record = packed(tmp_path / "a", tmp_path / "b")
    assert [r["seed"] for r in record["runs"]] == [0, 1]
    assert record["command"].endswith(f"--seeds 0; {packed(tmp_path / 'b')['command']}")
    for other in ("a", "c"):
        with pytest.raises(SystemExit, match="no other part"):
            packed(tmp_path / "a", tmp_path / other)
