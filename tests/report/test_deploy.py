"""What can be deployed, 'best of all' and differences between rows, from records written here."""

from __future__ import annotations

import csv
import io
import json
import statistics
from typing import Any

import pytest
from rich.console import Console

from steppe.records import load
from steppe.report import formatting
from steppe.report.comparison import _config_diff, deployables, page, tables

NAMES = ("network 1", "network 2", "ensemble")


def shown(what: Any, width: int = 120) -> str:
    file = io.StringIO()
    for part in what if isinstance(what, list) else [what]:
        Console(width=width, file=file).print(part)
    return file.getvalue()


def html(folder: Any) -> str:
    """Return the page, with no figures but those it draws itself."""
    comparison = load(folder.path)
    rows = tables.rows(comparison)
    return page.html(comparison, rows, page.files(comparison, rows), page.Live("", ""))


@pytest.fixture
def cohort(folder: Any) -> Any:
    """Return plain and a method of two networks, tested after every epoch."""
    for label in ("plain", "dml"):
        folder.method(label)
        for seed in range(3):
            folder.run(label, seed, 0.9 + 0.01 * seed, outputs=NAMES if label == "dml" else (), watch=True)
    folder.write()
    return folder


def test_each_output_has_its_mean_and_deviation(cohort: Any) -> None:
    found = {p.name: p for p in deployables.parts(load(cohort.path))}
    assert list(found) == ["deployed", *NAMES, "diversity"]
    assert {p.method for p in found.values()} == {"dml"}
    for i, name in enumerate(NAMES):
        values = [90 + seed + 0.5 * i for seed in range(3)]
        assert found[name].last.mean == pytest.approx(statistics.mean(values))
        assert found[name].last.std == pytest.approx(statistics.stdev(values))
        assert found[name].best.mean == pytest.approx(statistics.mean(values) + 0.1)
    assert found["deployed"].best.mean == pytest.approx(91.2)
    assert found["diversity"].last.mean == pytest.approx(0.11)


def test_the_tables_of_outputs_show_them(cohort: Any) -> None:
    parts = deployables.parts(load(cohort.path))
    lines = [line.split() for line in shown(deployables.terminal(parts)).splitlines()]
    assert ["dml", "deployed", "91.0", "±", "1.0", "91.2", "±", "1.0"] in lines
    assert ["ensemble", "92.0", "±", "1.0", "92.1", "±", "1.0"] in lines
    assert "| dml | ensemble | 92.0 ± 1.0 | 92.1 ± 1.0 |" in deployables.markdown(parts)
    read = list(csv.DictReader(io.StringIO(deployables.csv(parts))))
    assert float(read[3]["test_best_val_mean"]) == pytest.approx(92.1)
    assert read[3]["n"] == "3"


def test_one_network_has_no_such_table(full: Any) -> None:
    parts = deployables.parts(load(full.path))
    assert (parts, deployables.terminal(parts), deployables.markdown(parts)) == ([], [], "")
    assert deployables.TITLE not in html(full)


def largest(home: Any) -> float:
    """Return the largest number under any key 'accuracy' or 'test_accuracy' of a run's test figures."""
    best = 0.0
    for line in (home / "metrics.jsonl").read_text().splitlines():
        content = json.loads(line)
        best = max(best, content["test_accuracy"])
        for part in content.get("test_outputs", {}).values():
            best = max(best, part["accuracy"])
    return 100 * best


def test_best_of_all_is_the_largest_of_any_output_at_any_epoch(cohort: Any) -> None:
    comparison = load(cohort.path)
    for row in tables.rows(comparison):
        runs = [r for r in comparison.records if r.method == row.method]
        values = [largest(cohort.path / "runs" / r.digest) for r in runs]
        assert row.best_of_all.mean == pytest.approx(statistics.mean(values))
        assert row.best_of_all.std == pytest.approx(statistics.stdev(values))
        assert row.best_of_all.n == 3
    plain, dml = tables.rows(comparison)
    assert plain.best_of_all.mean < dml.best_of_all.mean


def test_best_of_all_is_named_and_explained_everywhere(cohort: Any) -> None:
    rows = tables.rows(load(cohort.path))
    for form in (tables.markdown(rows), tables.latex(rows), shown(tables.terminal(rows))):
        flowing = " ".join(form.replace("\n%", "\n").split())
        assert "best of all," in flowing.lower()
        assert "nothing is chosen by it here" in flowing
        assert formatting.spread(rows[1].best_of_all, 1).split(" ")[0] in flowing
    assert "test_best_of_all_mean,test_best_of_all_std" in tables.csv(rows)
    shown_there = html(cohort)
    assert "Best of all,\ntest %" in shown_there
    assert "nothing is chosen by it here" in shown_there
    assert "used exactly twice" not in shown_there


def test_every_line_of_a_table_with_the_column_has_as_many_cells(cohort: Any) -> None:
    rows = tables.rows(load(cohort.path))
    body = [x for x in tables.markdown(rows).splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in body}) == 1
    lines = [x for x in tables.latex(rows).splitlines() if x.endswith(r"\\")]
    assert len({line.count("&") for line in lines}) == 1
    columns = tables.latex(rows).split("{tabular}{")[1].split("}")[0]
    assert lines[0].count("&") + 1 == len(columns)
    assert len({len(line) for line in csv.reader(io.StringIO(tables.csv(rows)))}) == 1


def test_without_test_figures_there_is_no_such_column(full: Any) -> None:
    rows = tables.rows(load(full.path))
    assert all(row.best_of_all is None for row in rows)
    files = page.files(load(full.path), rows)
    assert sorted(files) == ["budgets.csv", "table.csv", "table.md", "table.tex"]
    for content in (html(full), *files.values()):
        assert "best of all" not in content.lower()
        assert "best_of_all" not in content


def test_settings_in_which_rows_of_one_kind_differ_are_marked(folder: Any) -> None:
    settings = {
        "plain": "Plain()",
        "sam": "SAM(rho=0.05, norm='global')",
        "sam:rho=0.2": "SAM(rho=0.2, norm='global')",
        "gsam": "GSAM(rho=0.05)",
        "odd": "SAM(rho=",
    }
    for label, resolved in settings.items():
        folder.method(label, resolved=resolved)
    folder.write()
    found = _config_diff.of_methods(load(folder.path))
    assert {label: "".join(piece for piece, _ in pieces) for label, pieces in found.items()} == settings
    marked = {label: [piece for piece, strong in pieces if strong] for label, pieces in found.items()}
    assert marked == {"plain": [], "sam": ["rho=0.05"], "sam:rho=0.2": ["rho=0.2"], "gsam": [], "odd": []}


def test_runs_that_were_not_configured_alike_are_named(folder: Any) -> None:
    for label, rate in (("plain", 0.1), ("sam", 0.1), ("rwp", 0.3)):
        folder.method(label)
        home = folder.run(label, 0, 0.9)
        config = {"method": label, "seed": 0, "batch": 64, "optim": {"lr": rate}, "resolved": label}
        (home / "config.json").write_text(json.dumps(config))
    folder.write()
    found = _config_diff.of_runs(load(folder.path))
    assert found == [("optim.lr", [("0.1", ["plain", "sam"]), ("0.3", ["rwp"])])]
    assert "These settings are not equal in all runs" in html(folder)
    assert "they differ in the method alone" not in html(folder)
