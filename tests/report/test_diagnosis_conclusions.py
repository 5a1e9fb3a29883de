"""The sentences of a diagnosis claim what intervals and rank correlations do, and no more."""

from typing import Any

from steppe.records import Record
from steppe.report.comparison.summary import Spread
from steppe.report.diagnosis.conclusions import differences, sentences
from steppe.report.diagnosis.summary import ACCURACY, CORRUPTED, SHARPNESS, DiagnosedRun, DiagnosisRow

SETTINGS = {"rho": 0.05, "steps": 5, "gamma": 0.02}


def row(method: str, sharp: list[float], accuracy: float) -> DiagnosisRow:
    """A method whose every measure of sharpness has these values over seeds."""
    runs = []
    for seed, value in enumerate(sharp):
        content: dict[str, Any] = {
            "settings": SETTINGS,
            "sharpness": {"sam": value, "steps": value, "adaptive": -value, "filter": {"mean": value}},
            "line": {"loss": [value, 0.0, value]},
            "hessian": {"values": [value], "trace": {"mean": value}},
            "robustness": {"mean": value / 100},
        }
        runs.append(DiagnosedRun(Record("d", method, "net", "data", seed, [], [], None), content))
    mean = sum(sharp) / len(sharp)
    values: dict[str, Spread | None] = {m.name: Spread(mean, None, 3) for m in SHARPNESS}
    return DiagnosisRow(method, runs, {**values, ACCURACY.name: Spread(accuracy, None, 3)})


def test_methods_differ_from_plain_only_where_the_interval_excludes_0():
    text = sentences([row("plain", [5, 6, 7], 50), row("sam", [1.0, 2.1, 3.0], 60), row("noisy", [4, 9, 6], 55)])
    assert "In SAM sharpness, sam is significantly below plain." in text
    assert "In adaptive sharpness, sam is significantly above plain." in text
    assert "noisy" not in text
    assert text.endswith(
        "None of the 7 sharpness measures is significantly rank-correlated with test accuracy "
        "(3 methods are too few to tell)."
    )


def test_without_intervals_there_is_no_comparison():
    text = sentences([row("plain", [5], 50), row("sam", [1], 60)])
    assert text == "A rank correlation needs at least three methods of different accuracy."
    wide = sentences([row("plain", [5, 5.5], 50), row("gc", [9, 1], 60)])
    assert wide.startswith("No method differs significantly from plain in SAM sharpness. No method")


def test_a_correlation_has_its_direction():
    text = sentences([row(f"m{i}", [i, i + 0.5], 90 - i) for i in range(6)])
    assert "Over 6 methods, 7 of 7 sharpness measures are significantly rank-correlated with test accuracy" in text
    assert "SAM sharpness (flatter is more accurate, tau -1.00, p 0.0028)" in text
    text = sentences([row(f"m{i}", [i, i + 0.5], 50 + i) for i in range(6)])
    assert "SAM sharpness (sharper is more accurate, tau +1.00" in text


def test_the_table_of_differences_is_to_plain():
    table = differences([row("plain", [5, 6, 7], 50), row("sam", [1.0, 2.1, 3.0], 60)])
    assert table is not None
    assert table["heads"][1] == "Worst of 5 steps" and table["heads"][-1] == CORRUPTED.name
    ((name, cells),) = table["rows"]
    assert name == "sam" and len(cells) == len(SHARPNESS) + 1
    assert cells[0]["mean"] == "\N{MINUS SIGN}4.0" and cells[0]["strong"]
    assert differences([row("sam", [1], 60)]) is None
