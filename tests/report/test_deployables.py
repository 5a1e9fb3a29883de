"""The outputs that can be deployed, and 'best of all', from records written here."""

import csv
import io
import statistics
from dataclasses import replace
from typing import Any

import pytest
from support.recorded import html, terminal

from steppe.records import load
from steppe.report import formatting
from steppe.report.comparison import deployables, page, tables
from steppe.report.comparison.summary import rows

NAMES = ("network 1", "network 2", "ensemble")


@pytest.fixture
def peers(folder: Any) -> Any:
    """Return plain and a method of two networks, tested after every epoch."""
    for label in ("plain", "dml"):
        folder.method(label)
        for seed in range(3):
            folder.run(label, seed, 0.9 + 0.01 * seed, outputs=NAMES if label == "dml" else (), watch=True)
    folder.write()
    return folder


def test_each_output_has_its_mean_and_deviation(peers: Any) -> None:
    parts = {p.name: p for p in deployables.parts(load(peers.path))}
    assert list(parts) == ["deployed", *NAMES, "diversity"]
    assert {p.method for p in parts.values()} == {"dml"}
    for i, name in enumerate(NAMES):
        values = [90 + seed + 0.5 * i for seed in range(3)]
        assert parts[name].last.mean == pytest.approx(statistics.mean(values))
        assert parts[name].last.std == pytest.approx(statistics.stdev(values))
        assert parts[name].best.mean == pytest.approx(statistics.mean(values) + 0.1)
    assert parts["deployed"].best.mean == pytest.approx(91.2)
    assert parts["diversity"].last.mean == pytest.approx(0.11)


def test_the_tables_of_outputs_show_them(peers: Any) -> None:
    parts = deployables.parts(load(peers.path))
    printed = [line.split() for line in terminal(*deployables.terminal(parts)).splitlines()]
    assert ["dml", "deployed", "91.0", "±", "1.0", "91.2", "±", "1.0"] in printed
    assert ["ensemble", "92.0", "±", "1.0", "92.1", "±", "1.0"] in printed
    assert "| dml | ensemble | 92.0 ± 1.0 | 92.1 ± 1.0 |" in deployables.markdown(parts)
    lines = list(csv.DictReader(io.StringIO(deployables.csv(parts))))
    assert float(lines[3]["test_best_val_mean"]) == pytest.approx(92.1)
    assert lines[3]["n"] == "3"


def test_networks_that_became_one_are_named(peers: Any) -> None:
    parts = deployables.parts(load(peers.path))
    assert "predict the same" not in deployables.note(parts)
    one = replace(parts[-1], last=replace(parts[-1].last, mean=0.0004))
    assert "networks or branches of dml predict the same after the last epoch" in deployables.note([*parts, one])


def test_best_of_all_is_the_largest_of_any_output_at_any_epoch(peers: Any) -> None:
    comparison = load(peers.path)
    for row in rows(comparison):
        runs = [r for r in comparison.records if r.method == row.method]
        # a run's last output is half a point above the one before it
        best = 0.005 * (len(NAMES) - 1) if row.method == "dml" else -0.01
        values = [max(100 * (line["val_accuracy"] + best) for line in r.metrics) for r in runs]
        assert row.best_of_all.mean == pytest.approx(statistics.mean(values))
        assert row.best_of_all.std == pytest.approx(statistics.stdev(values))
        assert row.best_of_all.n == 3


def test_best_of_all_is_a_column_in_every_format_and_explained(peers: Any) -> None:
    table = rows(load(peers.path))
    for form in (tables.markdown(table), tables.latex(table), terminal(tables.terminal(table))):
        flowing = " ".join(form.replace("\n%", "\n").split())
        assert "best of all," in flowing.lower()
        assert "nothing here is chosen by it" in flowing
        assert formatting.spread(table[1].best_of_all, 1).split(" ")[0] in flowing
    assert "test_best_of_all_mean,test_best_of_all_std" in tables.csv(table)
    body = [x for x in tables.markdown(table).splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in body}) == 1
    lines = [x for x in tables.latex(table).splitlines() if x.endswith(r"\\")]
    columns = tables.latex(table).split("{tabular}{")[1].split("}")[0]
    assert {line.count("&") + 1 for line in lines} == {len(columns)}
    assert len({len(line) for line in csv.reader(io.StringIO(tables.csv(table)))}) == 1
    text = html(peers.path, "version")
    assert "Best of all,\ntest %" in text
    assert "nothing here is chosen by it" in text
    assert "used exactly twice" not in text


def test_without_several_networks_and_test_figures_neither_table_nor_column_is_there(full: Any) -> None:
    comparison = load(full.path)
    parts, table = deployables.parts(comparison), rows(comparison)
    assert (parts, deployables.terminal(parts), deployables.markdown(parts)) == ([], [], "")
    assert all(row.best_of_all is None for row in table)
    files = page.files(comparison, table)
    assert sorted(files) == ["budgets.csv", "table.csv", "table.md", "table.tex"]
    for content in (html(full.path, "version"), *files.values()):
        assert deployables.TITLE not in content
        assert "best of all" not in content.lower() and "best_of_all" not in content
