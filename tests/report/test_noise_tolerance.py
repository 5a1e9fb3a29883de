"""The table of bounds marks vacuous ones and averages only the others."""

from steppe.records import Record
from steppe.report.diagnosis._noise_tolerance import MEASURES, bound_cell, complexity
from steppe.report.diagnosis.summary import METRIC, DiagnosedRun, DiagnosisRow
from steppe.report.formatting import NONE


def row(method: str, *values: float, sigma: float | None = 0.1) -> DiagnosisRow:
    runs = []
    for seed, value in enumerate(values):
        part = {
            "norms": {"distance": 3.0, "margin": -1.0, "spectral": 4.0, "neyshabur": None, "bartlett": None},
            "isotropic": None if sigma is None else {"sigma": sigma, "start": 50.0},
            "magnitude": {"sigma": 0.3, "start": 70.0},
            "bounds": [{"kind": "seeger", "value": value}],
        }
        content = {"complexity": part, "settings": {"trained": 30}}
        runs.append(DiagnosedRun(Record("d", method, "net", "data", seed, [], [], None), content))
    return DiagnosisRow(method, runs, {METRIC.name: None})


def test_a_bound_of_1_is_vacuous():
    assert bound_cell(row("m", 1.0, 7.2), "seeger") == ("vacuous", "")
    assert bound_cell(row("m", 0.25, 1.3, 0.35), "seeger") == ("30.0", "± 7.1, 1 of 3 vacuous")
    assert bound_cell(row("m", 0.25), "seeger") == ("25.0", "")


def test_the_table_has_the_bounds_that_all_have_and_dashes_where_there_is_no_margin():
    table = complexity([row("plain", 0.5), row("sam", 1.5, sigma=None)])
    assert table["heads"][-1] == "Seeger, %" and len(table["heads"]) == len(MEASURES) + 1
    assert table["bounds"] == ["Seeger"]
    (plain, cells), (_, others) = table["rows"]
    assert plain == "plain" and cells[-1] == ("50.0", "") and others[-1] == ("vacuous", "")
    names = table["heads"]
    assert cells[names.index("Neyshabur, ln")][0] == cells[names.index("Bartlett, ln")][0] == NONE
    assert (
        cells[names.index("Tolerated noise")][0] == "0.100" and others[names.index("Tolerated noise")][0] == NONE
    )
