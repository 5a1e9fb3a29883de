"""Accuracy at equal budgets, against numpy and numbers worked out by hand."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.records import load
from steppe.report.comparison.equal_budget import budgets, interpolate
from steppe.report.comparison.equal_budget import csv as budget_csv

GROUP = ("digits", "simple-cnn")
numbers = st.floats(-100, 100)


def curve(home: Any, gradients: Any, accuracies: Any, seconds: Any = None) -> None:
    """Put another curve into a run that the fixture has written."""
    lines = [
        {"epoch": i + 1, "val_accuracy": a, "gradients": g}
        for i, (g, a) in enumerate(zip(gradients, accuracies, strict=True))
    ]
    (home / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    times = [{"epoch": i + 1, "seconds": s} for i, s in enumerate(seconds or gradients)]
    (home / "timing.jsonl").write_text("".join(json.dumps(x) + "\n" for x in times))


@given(st.lists(st.tuples(st.floats(0.01, 10), numbers), min_size=1, max_size=9), st.floats(0, 1.3))
def test_curves_are_interpolated_as_numpy_does(points: Any, share: float) -> None:
    x = np.cumsum([step for step, _ in points])
    y = [height for _, height in points]
    at = share * x[-1]
    result = interpolate(list(x), y, at)
    if at < x[0]:
        assert result is None
    else:
        assert result == pytest.approx(np.interp(at, x, y), abs=1e-9)
    # gaps are bridged
    assert interpolate([1, 2, 3], [10, None, 30], 2) == 20
    assert interpolate([None, None], [1, 2], 5) is None


def two(folder: Any) -> Any:
    """Write plain, its control and a method of twice the cost: 20 and 40 gradients, three seeds."""
    for label in ("plain", "repeat-step"):
        folder.method(label)
    folder.method("sam", controls=["repeat-step"])
    for seed in range(3):
        curve(folder.run("plain", seed, 0.9), [10, 20], [0.5, 0.7 + 0.01 * seed], [1, 2])
        curve(folder.run("repeat-step", seed, 0.9), [10, 20], [0.6, 0.8], [1, 2.2])
        curve(folder.run("sam", seed, 0.9), [15, 45], [0.6, 0.9 + 0.03 * seed], [4, 8])
    return load(folder.write())


def test_budgets_worked_out_by_hand(folder: Any) -> None:
    by = {b.axis: b for b in budgets(two(folder), GROUP)}
    assert {axis: b.amount for axis, b in by.items()} == {"epochs": 2, "gradients": 20, "seconds": 2}
    plain, control, sam = by["gradients"].rows
    assert (plain.value.mean, plain.epochs, plain.difference) == (pytest.approx(71), 2, None)
    # a sixth of the way from 15 to 45 gradients: from 60 % to 90, 93 and 96 %
    assert sam.value.mean == pytest.approx((65 + 65.5 + 66) / 3)
    assert sam.value.std == pytest.approx(0.5)
    assert sam.epochs == pytest.approx(1 + 1 / 6)
    assert sam.difference.mean == pytest.approx((65 - 70 + 65.5 - 71 + 66 - 72) / 3)
    assert sam.difference.n == 3
    assert sam.controls["repeat-step"].mean == pytest.approx(65.5 - 80)
    assert control.controls == {}


def test_a_budget_that_not_one_epoch_fits_has_no_accuracy(folder: Any) -> None:
    by = {b.axis: b for b in budgets(two(folder), GROUP)}
    plain, control, sam = by["seconds"].rows
    assert sam.value is sam.epochs is sam.difference is None
    assert control.value.mean == pytest.approx(60 + 20 * 1 / 1.2)
    assert control.difference.n == 3
    assert plain.value.n == 3


def test_runs_that_did_not_end_well_set_no_budget(folder: Any) -> None:
    folder.method("plain")
    folder.method("sam")
    for seed in range(2):
        curve(folder.run("plain", seed, 0.9), [10, 20], [0.5, 0.7])
    curve(folder.run("sam", 0, None, "failed", "loss is not finite"), [5], [0.1])
    curve(folder.run("sam", 1, None, "unfinished"), [5], [0.1])
    (epochs, gradients, _) = budgets(load(folder.write()), GROUP)
    assert (epochs.amount, gradients.amount) == (2, 20)
    assert [r.method for r in gradients.rows] == ["plain"]


def test_nothing_finished_has_no_budget_and_no_times_have_none_in_seconds(folder: Any) -> None:
    folder.method("plain")
    folder.run("plain", 0, None, "unfinished")
    assert budgets(load(folder.write()), GROUP) == []
    (folder.run("plain", 1, 0.9) / "timing.jsonl").write_text("")
    assert [b.axis for b in budgets(load(folder.write()), GROUP)] == ["epochs", "gradients"]


def test_the_file_of_budgets_has_the_same_numbers(folder: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(budget_csv(two(folder)))))
    sam = lines[5]
    assert [(x["equal"], x["method"]) for x in lines[4:6]] == [("gradients", "repeat-step"), ("gradients", "sam")]
    assert float(sam["val_mean"]) == pytest.approx(65.5)
    assert (float(sam["budget"]), sam["n"], float(sam["minus_plain"])) == (20, "3", pytest.approx(-5.5))
    assert (lines[8]["method"], lines[8]["val_mean"], lines[8]["n"]) == ("sam", "", "0")
