"""The sentences of a diagnosis claim what intervals and rank correlations do, and no more."""

from typing import Any

import pytest

from steppe.records import Record
from steppe.report.comparison.summary import Spread
from steppe.report.diagnosis.conclusions import (
    about_endpoints,
    about_trajectories,
    differences,
    sentences,
)
from steppe.report.diagnosis.summary import CORRUPTED, METRIC, SHARPNESS, DiagnosedRun, DiagnosisRow

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
    return DiagnosisRow(method, runs, {**values, METRIC.name: Spread(accuracy, None, 3)})


def test_methods_differ_from_plain_only_where_the_interval_excludes_0():
    text = sentences([row("plain", [5, 6, 7], 50), row("sam", [1.0, 2.1, 3.0], 60), row("noisy", [4, 9, 6], 55)])
    same = "SAM sharpness, Worst of 5 steps, Filter noise, Along a line, Top eigenvalue and Trace"
    assert text.startswith(f"In {same}, sam is significantly below plain. In Adaptive, sam is significantly above")
    assert "In Corrupted accuracy, sam is significantly below plain." in text
    assert "With Holm's adjustment over these 16 differences, 8 are significant." in text
    assert "noisy" not in text
    assert text.endswith(
        "None of the 7 sharpness measures is significantly rank-correlated with test accuracy "
        "(3 methods are too few to tell)."
    )


def test_without_intervals_there_is_no_comparison():
    text = sentences([row("plain", [5], 50), row("sam", [1], 60)])
    assert text == "A rank correlation needs at least three methods of different accuracy."
    wide = sentences([row("plain", [5, 5.5], 50), row("gc", [9, 1], 60)])
    assert wide.startswith("No method differs significantly from plain in any of 8 measures. A rank")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("hessian", "trace", "mean"), "In Trace, sam is significantly below plain."),
        (("sharpness", "filter", "mean"), "In Filter noise, sam is significantly below plain."),
        (("robustness", "mean"), "In Corrupted accuracy, sam is significantly below plain."),
    ],
)
def test_the_only_measure_that_separates_is_named(path, text):
    table = [row("plain", [5, 9, 6], 50), row("sam", [6, 5, 9.5], 60)]
    for method, values in zip(table, ([50, 60, 70], [10, 21, 30]), strict=True):
        for run, value in zip(method.runs, values, strict=True):
            content: Any = run.diagnosis
            for key in path[:-1]:
                content = content[key]
            content[path[-1]] = value
    text = (
        f"{text} In the other 7 measures no method differs significantly from plain. With Holm's adjustment over "
    )
    assert sentences(table).startswith(f"{text}these 8 differences, 1 is significant.")


def test_ties_of_barriers_and_losses_are_named():
    extent = {"statistics": 8}
    paths = {name: {"barrier": barrier} for name, barrier in (("a", 0.0), ("b", 0.5), ("c", 0.5))}
    content = {"seed": 0, "residuals": [1.0, 2.0, 3.0], "extent": extent, "paths": paths}
    assert about_endpoints(content).endswith("The highest barrier, 0.5 nats, is on the lines to b and c.")
    tracks = [
        {"method": name, "name": name, "residuals": [1.0], "own": [own]}
        for name, own in (("a", 0.25), ("b", 0.25), ("c", None))
    ]
    about = about_trajectories({"seed": 0, "extent": extent, "tracks": tracks, "elsewhere": []})
    assert about.endswith("a and b end lowest, at 0.25 nats.")


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
