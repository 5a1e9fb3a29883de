"""What the page says in words is what intervals and orders say."""

from __future__ import annotations

from typing import Any

from steppe.records import Record
from steppe.report.comparison.summary import Spread
from steppe.report.diagnosis.conclusions import differences, reading
from steppe.report.diagnosis.summary import ACCURACY, CORRUPTED, SHARPNESS, Diagnosed, DiagnosisRow

SETTINGS = {"rho": 0.05, "steps": 5, "gamma": 0.02}


def row(method: str, sharp: list[float], accuracy: float) -> DiagnosisRow:
    """A method whose every measure of sharpness has these values over seeds."""
    runs = []
    for seed, value in enumerate(sharp):
        found: dict[str, Any] = {
            "settings": SETTINGS,
            "sharpness": {"sam": value, "steps": value, "adaptive": -value, "filter": {"mean": value}},
            "line": {"loss": [value, 0.0, value]},
            "hessian": {"values": [value], "trace": {"mean": value}},
            "robustness": {"mean": value / 100},
        }
        runs.append(Diagnosed(Record("d", method, "net", "data", seed, [], [], None), found))
    mean = sum(sharp) / len(sharp)
    values: dict[str, Spread | None] = {m.name: Spread(mean, None, 3) for m in SHARPNESS}
    return DiagnosisRow(method, runs, {**values, ACCURACY.name: Spread(accuracy, None, 3)})


def test_flatter_is_said_only_where_the_interval_excludes_0():
    said = reading([row("plain", [5, 6, 7], 50), row("sam", [1.0, 2.1, 3.0], 60), row("noisy", [4, 9, 6], 55)])
    assert "In SAM sharpness, intervals that exclude 0 put sam below plain." in said
    assert "In adaptive sharpness, intervals that exclude 0 put sam above plain." in said
    assert "noisy" not in said
    assert "Over 3 methods, none of 7 measures" in said


def test_without_intervals_nothing_is_said_of_them():
    assert reading([row("plain", [5], 50), row("sam", [1], 60)]) == (
        "With fewer than three methods there is no order to compare."
    )
    apart = reading([row("plain", [5, 5.5], 50), row("gc", [9, 1], 60)])
    assert apart.count("put no method below or above plain") == 2


def test_an_order_is_said_with_its_direction():
    rows = [row(f"m{i}", [i, i + 0.5], 90 - i) for i in range(6)]
    said = reading(rows)
    assert "Over 6 methods, 7 of 7 measures of sharpness go with test accuracy" in said
    assert "SAM sharpness (flatter is more accurate, tau -1.00, p 0.0028)" in said
    turned = reading([row(f"m{i}", [i, i + 0.5], 50 + i) for i in range(6)])
    assert "SAM sharpness (sharper is more accurate, tau +1.00" in turned


def test_the_table_of_differences_is_to_plain():
    found = differences([row("plain", [5, 6, 7], 50), row("sam", [1.0, 2.1, 3.0], 60)])
    assert found is not None
    assert found["heads"][1] == "Worst of 5 steps" and found["heads"][-1] == CORRUPTED.name
    ((name, cells),) = found["rows"]
    assert name == "sam" and len(cells) == len(SHARPNESS) + 1
    assert cells[0]["mean"] == "\N{MINUS SIGN}4.0" and cells[0]["strong"]
    assert differences([row("sam", [1], 60)]) is None
