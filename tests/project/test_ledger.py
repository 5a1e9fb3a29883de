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


def test_the_pages_of_suites_are_what_their_records_give():
    suites = script("make_suites")
    for name in suites.PAGES:
        assert (DOCS / f"results/{name}.md").read_text() == suites.page(name), "run python docs/make_suites.py"


def test_every_printed_value_has_a_line(ledger):
    page = (DOCS / "ledger.md").read_text()
    cells = 0
    for name in recipes.names():
        recipe = recipes.load(name)
        for data, model, row, *numbers in recipe.published.rows:
            if {"accuracy", "top-1"} & {*recipe.published.columns}:
                assert f"| {data} | {model} | {row} | {numbers[0]:.2f}" in page
                cells += 1
    for about in ledger.index()["measures"].values():
        printed = recipes.load(about["recipe"]).published
        column = about.get("column") and printed.columns.index(about["column"])
        for data, model, row, value in about.get("rows") or [(*r[:3], r[column]) for r in printed.rows]:
            assert f"| {data} | {model} | {row} | {value:.2f}" in page
            cells += 1
    for data, model, row, seconds, gpus in ledger.index()["seconds"]["rows"]:
        assert f"| {data} | {model} | {row} | {gpus} | {seconds:.3f}" in page
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


def test_other_measures_of_a_recipe_s_runs_have_the_same_rule(ledger, monkeypatch):
    values = {"plain": (50.0, 51.0, 52.0), "sam": (52.0, 54.0, 53.0), "rwp": (50.5, 51.0, 52.2)}
    runs = [
        {"method": row, "seed": seed, "last": 0.0, "severity_5": value}
        for row, own in values.items()
        for seed, value in enumerate(own)
    ]
    about = {"rows": {row: row for row in values}, "control": None, "protocol": "full, bf16"}
    monkeypatch.setattr(ledger, "records_of", lambda *_: ("name", about))
    monkeypatch.setattr(ledger, "runs", lambda _: runs)
    rows = [
        ("cifar10", "resnet18", row, value, None) for row, value in (("plain", 56.0), ("sam", 58.0), ("rwp", 61.0))
    ]
    recipe = recipes.load("rwp-table1")
    lines = [line.split(" | ") for line in ledger.cells_of(recipe, rows, "severity_5", {})][2:]
    # +2, +3, +1 and +0.5, 0, +0.2, with Student's 4.303 for two degrees of freedom
    assert [line[6:8] + line[9:] for line in lines] == [
        ["51.00 ± 1.00 (n=3)", ledger.NONE, "the baseline |"],
        ["53.00 ± 1.00 (n=3)", "+2.00 [-0.48, 4.48]", "agrees |"],
        ["51.23 ± 0.87 (n=3)", "+0.23 [-0.39, 0.86]", "differs |"],
    ]
    (line, *_) = list(ledger.cells_of(recipe, rows, "top_5", {}))[2:]
    assert "not run: 0.033 EFLOP a seed" in line  # not measured


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
    for path in (tmp_path / "a" / "runs").iterdir():
        made = {
            "which": "last",
            "corruptions": "CIFAR-10-C",
            "robustness": {"severities": [0.5, 0.4, 0.3, 0.2, 0.1]},
        }
        (path / "diagnosis.json").write_text(json.dumps(made))
        content = json.loads((path / "result.json").read_text())
        content["test"]["last"]["top-5"] = 0.75
        (path / "result.json").write_text(json.dumps(content))
    record = script("pack_records").packed(tmp_path / "a")
    assert [(r["severity_5"], r["top_5"]) for r in record["runs"]] == [(10.0, 75.0)] * 2
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


SUITE = """
title: Two tables
seeds: {tune: [100], final: [0]}
settings: {model: mlp-4x1, data.augment: [], batch: 64, epochs: 1}
tasks: {diabetes: {dataset: diabetes}, wine: {dataset: wine}}
rows: {plain: [plain]}
"""


def test_a_suite_trained_on_two_machines_is_packed_into_one_file(tmp_path, monkeypatch):
    (tmp_path / "tables.yaml").write_text(SUITE)
    pack_records = script("pack_records")
    monkeypatch.setattr(pack_records, "FOLDER", tmp_path)
    for task in ("diabetes", "wine"):
        command = f"compare recipe={tmp_path / 'tables.yaml'} --tasks {task} --out {tmp_path / task}"
        assert main(command.split()) == 0
        pack_records.pack("tables", tmp_path / task)
    first, second, both = (
        *(pack_records.packed(tmp_path / task) for task in ("diabetes", "wine")),
        json.loads((tmp_path / "tables.json").read_text()),
    )
    assert both["tuning"] == first["tuning"] | second["tuning"]
    assert both["views"] == {view: first["views"][view] | second["views"][view] for view in ("compute", "epochs")}
    assert both["views"]["compute"].keys() == {"diabetes", "wine"}
    with pytest.raises(SystemExit, match="another torch: '1.0', not"):
        pack_records.with_tasks_of(first | {"torch": "1.0"}, second)
