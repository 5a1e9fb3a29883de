"""The rows of a comparison and its table as terminal text, Markdown, CSV and LaTeX."""

import csv
import io
import math
import statistics
from typing import Any

import pytest
from rich.console import Console
from support.recorded import Folder, grid, html, terminal

from steppe.records import load
from steppe.report.comparison import tables
from steppe.report.comparison.conclusions import sentence
from steppe.report.comparison.equal_budget import budgets
from steppe.report.comparison.summary import rows
from steppe.report.formatting import interval, mean, number
from steppe.report.statistics import Difference

T2 = 4.302652729911275  # t(0.975; 2)
T1 = 12.706204736174694  # t(0.975; 1)


def test_rows_have_counts_costs_and_the_means_spreads_and_intervals_computed_here(full: Any) -> None:
    table = {row.method: row for row in rows(load(full.path))}
    assert list(table) == list(full.compare["methods"])
    assert (table["agc"].ok, table["agc"].failed, table["agc"].unfinished) == (2, 1, 0)
    last = table["sadt-v3"]
    assert (last.ok, last.failed, last.unfinished) == (2, 0, 1)
    assert (last.forward, last.backward, last.updates, last.memory) == (3.0, 2.0, 2.0, 660.0)
    assert last.time_ratio == pytest.approx(3.0, rel=0.02)
    plain = full.accuracy[("digits", "plain")]
    for method, row in table.items():
        mine = {s: 100 * v for s, v in full.accuracy[("digits", method)].items()}
        assert row.last.mean == pytest.approx(statistics.mean(mine.values()))
        assert row.last.std == pytest.approx(statistics.stdev(mine.values()))
        assert row.best.mean == pytest.approx(statistics.mean(mine.values()) + 0.2)
        if method == "plain":
            assert row.difference is None
            continue
        d = [mine[s] - 100 * plain[s] for s in mine]
        half = {2: T1, 3: T2}[len(d)] * statistics.stdev(d) / math.sqrt(len(d))
        assert row.difference.mean == pytest.approx(statistics.mean(d))
        assert row.difference.low == pytest.approx(statistics.mean(d) - half)
        assert row.difference.high == pytest.approx(statistics.mean(d) + half)
        assert row.difference.n == len(d)
    mine, control = full.accuracy[("digits", "sadt-v1")], full.accuracy[("digits", "two-step")]
    controls = table["sadt-v1"].controls
    assert list(controls) == ["repeat-step", "two-step"]
    assert controls["two-step"].mean == pytest.approx(statistics.mean(100 * (mine[s] - control[s]) for s in mine))


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_fits_and_has_the_counts(full: Any, width: int) -> None:
    text = terminal(tables.terminal(rows(load(full.path))), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "n=3" in text
    assert "n=2, 1 failed" in text
    assert "…" not in text


def test_a_star_marks_what_is_significant_and_one_seed_has_no_interval(tmp_path: Any) -> None:
    values = {"plain": [90, 91, 92], "up": [95, 96.1, 97], "same": [90.5, 90.1, 92.2]}
    table = Folder(tmp_path / "three").simple(values, {"up": ["absent", "plain", "same"]})
    lines = {
        line.split()[0]: line for line in terminal(tables.terminal(table), width=100).splitlines() if line.strip()
    }
    assert "] *" in lines["up"] and "*" not in lines["same"]
    assert list(table[1].controls) == [
        "same"
    ]  # one that is not compared is left out, and plain has its own column
    table = Folder(tmp_path / "one").simple({"plain": [90], "sam": [95]})
    for text in (terminal(tables.terminal(table)), tables.markdown(table), tables.latex(table)):
        assert "one seed: no interval" in text
        assert "±" not in text and "95 %" not in text and "not adjusted" not in text
    assert "±" not in terminal(tables.terminal(table)).split("sam")[1].splitlines()[0]


def test_the_terminal_table_survives_ascii(full: Any) -> None:
    binary = io.BytesIO()
    file = io.TextIOWrapper(binary, encoding="ascii")
    Console(width=100, file=file).print(tables.terminal(rows(load(full.path))))
    file.flush()
    assert b"+/-" in binary.getvalue()


def test_each_data_set_has_its_own_table_and_sentence(folder: Any) -> None:
    for dataset in ("digits", "cifar10"):
        grid(folder, dataset)
    table = rows(load(folder.write()))
    assert len(table) == 18
    assert tables.markdown(table).count("| method |") == 2
    assert tables.latex(table).count(r"\begin{tabular}") == 2
    assert "cifar10, simple-cnn: Over 3 seeds" in sentence(table)


def test_csv_has_the_unrounded_numbers(full: Any) -> None:
    table = rows(load(full.path))
    lines = list(csv.DictReader(io.StringIO(tables.csv(table))))
    mean = statistics.mean(100 * v for v in full.accuracy[("digits", "sadt-v1")].values())
    assert float(lines[6]["test_last_mean"]) == pytest.approx(mean)
    assert float(lines[6]["minus_repeat-step_low"]) == table[6].controls["repeat-step"].low
    assert lines[0]["minus_plain"] == ""
    # and the rounded ones are never minus zero
    assert (number(-0.04), number(-0.04, sign=True), number(0.06, sign=True)) == ("0.0", "0.0", "+0.1")


def test_a_control_that_is_plain_is_compared_once_in_every_table(full: Any) -> None:
    full.compare["methods"]["gc"]["controls"] = ["plain"]
    full.compare["methods"]["sam"]["controls"] = ["two-step", "plain", "two-step"]
    comparison = load(full.write())
    table = rows(comparison)
    (heads, *_) = csv.reader(io.StringIO(tables.csv(table)))
    assert len(set(heads)) == len(heads) and "minus_two-step" in heads
    assert tables.latex(table).count("Minus plain") == 1
    assert "plain +" not in tables.markdown(table) and "plain -" not in tables.markdown(table)
    # 8 differences to plain, two to controls for each of the three sadt methods and one for sam; one of these 15
    # is equal in both seeds
    assert "over the table's 14 differences that have an interval, " in sentence(table)
    assert [r.method for r in table if "plain" in r.controls] == []
    for budget in budgets(comparison, ("digits", "simple-cnn")):
        assert {r.method: list(r.controls) for r in budget.rows}["sam"] == ["two-step"]
    # the page still names it among the method's controls
    text = html(full.path, "version")
    assert '<span class="sub">Controls: plain</span>' in text
    assert '<span class="sub">Controls: plain, two-step</span>' in text


@pytest.mark.parametrize("name", ["=cmd()", "a|b", "<script>", "x_1 & 50%", "$\\alpha$", "\x1b[31mred", "a\nb"])
def test_names_cannot_break_a_table(folder: Any, name: str) -> None:
    table = folder.simple({"plain": [90, 91], name: [92, 94]})
    assert "\x1b" not in terminal(tables.terminal(table), width=100)
    markdown = [line for line in tables.markdown(table).splitlines() if line[:1] == "|"]
    assert len({line.count("|") - line.count("\\|") for line in markdown}) == 1
    assert "<script>" not in "".join(markdown)
    text = tables.csv(table)
    assert len(list(csv.reader(io.StringIO(text)))) == 3
    assert "\n=" not in text
    assert ",=" not in text
    body = tables.latex(table).split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")} == {6}


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-4.2, -0.0213, "[-4.2, -0.02]"),
        (0.00049, 3.0, "[0.0005, 3.0]"),
        (1e-9, 2e-8, "[1.0e-09, 2.0e-08]"),
        (-0.01, 0.01, "[0.0, 0.0]"),
        (0.0, 1.0, "[0.0, 1.0]"),
    ],
)
def test_an_interval_that_excludes_0_has_no_bound_that_is_printed_as_0(low: float, high: float, text: str) -> None:
    assert interval(Difference(1.0, low, high, 3, 0.04), 1) == text


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [(0.001, 0.003, 0.005, "+0.003"), (1e-6, 2e-6, 3e-6, "+2.0e-06"), (-0.001, 0.003, 0.005, "0.0")],
)
def test_a_mean_whose_interval_excludes_0_is_not_printed_as_0(
    low: float, value: float, high: float, text: str
) -> None:
    assert mean(Difference(value, low, high, 3, 0.04), 1) == text
