from __future__ import annotations

import csv
import io
import math
import random
import statistics
from typing import Any

import pytest
from rich.console import Console

from steppe.records import load
from steppe.report.comparison import tables
from steppe.report.comparison.conclusions import remarks
from steppe.report.formatting import number

T2 = 4.302652729911275  # t(0.975; 2)
T1 = 12.706204736174694  # t(0.975; 1)


def by_method(folder: Any) -> Any:
    return {row.method: row for row in tables.rows(load(folder.path))}


def shown(rows: Any, width: int, **options: Any) -> Any:
    file = io.StringIO()
    Console(width=width, file=file, **options).print(tables.terminal(rows))
    return file.getvalue()


def simple(folder: Any, accuracies: Any, controls: Any = None) -> Any:
    """Write methods with the given test accuracies (percent), one per seed."""
    for label, values in accuracies.items():
        folder.method(label, controls=(controls or {}).get(label, []))
        for seed, value in enumerate(values):
            folder.run(label, seed, value / 100)
    folder.write()
    return tables.rows(load(folder.path))


def test_rows_are_in_order_with_counts(full: Any) -> None:
    rows = tables.rows(load(full.path))
    assert [r.method for r in rows] == list(full.compare["methods"])
    found = by_method(full)
    assert (found["agc"].ok, found["agc"].failed, found["agc"].unfinished) == (2, 1, 0)
    assert (found["sadt-v3"].ok, found["sadt-v3"].failed, found["sadt-v3"].unfinished) == (2, 0, 1)
    assert [m for m, r in found.items() if r.is_control] == ["repeat-step", "two-step"]


def test_means_spreads_and_intervals_match_values_computed_here(full: Any) -> None:
    found = by_method(full)
    plain = full.accuracy[("digits", "plain")]
    for method, row in found.items():
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


def test_controls_are_paired_by_seed(full: Any) -> None:
    row = by_method(full)["sadt-v1"]
    assert list(row.controls) == ["repeat-step", "two-step"]
    mine, control = full.accuracy[("digits", "sadt-v1")], full.accuracy[("digits", "two-step")]
    assert row.controls["two-step"].mean == pytest.approx(
        statistics.mean(100 * (mine[s] - control[s]) for s in mine)
    )


def test_cost_columns(full: Any) -> None:
    row = by_method(full)["sadt-v3"]
    assert (row.forward, row.backward, row.updates, row.memory) == (3.0, 2.0, 2.0, 660.0)
    assert row.time_ratio == pytest.approx(3.0, rel=0.02)
    assert by_method(full)["plain"].time_ratio == 1.0


def test_a_control_that_is_not_compared_is_left_out(folder: Any) -> None:
    rows = simple(folder, {"plain": [90, 91], "x": [92, 94]}, {"x": ["absent", "plain"]})
    assert list(rows[1].controls) == ["plain"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_table_fits_and_shows_the_count(full: Any, width: int) -> None:
    text = shown(tables.rows(load(full.path)), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "n=3" in text
    assert "n=2, 1 failed" in text
    assert "…" not in text


def test_a_star_says_what_colour_would(folder: Any) -> None:
    rows = simple(folder, {"plain": [90, 91, 92], "up": [95, 96.1, 97], "same": [90.5, 90.1, 92.2]})
    lines = {line.split()[0]: line for line in shown(rows, 100).splitlines() if line.strip()}
    assert "] *" in lines["up"]
    assert "*" not in lines["same"]


def test_the_terminal_table_survives_ascii(full: Any) -> None:
    binary = io.BytesIO()
    file = io.TextIOWrapper(binary, encoding="ascii")
    Console(width=100, file=file).print(tables.terminal(tables.rows(load(full.path))))
    file.flush()
    assert b"+/-" in binary.getvalue()


def test_one_seed_prints_no_interval(folder: Any) -> None:
    rows = simple(folder, {"plain": [90], "sam": [95]})
    for text in (shown(rows, 100), tables.markdown(rows), tables.latex(rows)):
        assert "one seed: no interval" in text
    assert "±" not in shown(rows, 100).split("sam")[1].splitlines()[0]


def test_one_table_per_data_set(double: Any) -> None:
    rows = tables.rows(load(double.path))
    assert len(rows) == 18
    assert tables.markdown(rows).count("| method |") == 2
    assert tables.latex(rows).count(r"\begin{tabular}") == 2
    assert "cifar10, simple-cnn: Over 3 seeds" in tables.sentence(rows)


def test_csv_has_the_unrounded_numbers(full: Any) -> None:
    rows = tables.rows(load(full.path))
    read = list(csv.DictReader(io.StringIO(tables.csv(rows))))
    assert float(read[6]["test_last_mean"]) == pytest.approx(
        statistics.mean(100 * v for v in full.accuracy[("digits", "sadt-v1")].values())
    )
    assert float(read[6]["minus_repeat-step_low"]) == rows[6].controls["repeat-step"].low
    assert read[0]["minus_plain"] == ""


def test_no_table_has_a_best_test_column(full: Any) -> None:
    rows = tables.rows(load(full.path))
    for text in (tables.csv(rows), tables.markdown(rows), tables.latex(rows), shown(rows, 160)):
        assert "best test" not in text.lower()
        assert "test_best_mean" not in text


@pytest.mark.parametrize("name", ["=cmd()", "a|b", "<script>", "x_1 & 50%", "$\\alpha$", "\x1b[31mred", "a\nb"])
def test_names_cannot_break_a_table(folder: Any, name: str) -> None:
    rows = simple(folder, {"plain": [90, 91], name: [92, 94]})
    assert "\x1b" not in shown(rows, 100)
    assert (
        len(
            {line.count("|") - line.count("\\|") for line in tables.markdown(rows).splitlines() if line[:1] == "|"}
        )
        == 1
    )
    assert "<script>" not in tables.markdown(rows)
    assert len(list(csv.reader(io.StringIO(tables.csv(rows))))) == 3
    assert "\n=" not in tables.csv(rows)
    assert ",=" not in tables.csv(rows)
    body = tables.latex(rows).split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")} == {6}


def test_numbers_are_never_minus_zero() -> None:
    assert number(-0.04) == "0.0"
    assert number(-0.04, sign=True) == "0.0"
    assert number(0.06, sign=True) == "+0.1"


def test_the_sentence_names_the_highest_and_its_control(folder: Any) -> None:
    rows = simple(
        folder,
        {"plain": [90, 91, 92], "repeat-step": [94, 96, 96], "sadt-v1": [95, 95.5, 97]},
        {"sadt-v1": ["repeat-step"]},
    )
    text = tables.sentence(rows)
    assert "Over 3 seeds sadt-v1 has the highest mean test accuracy, 95.8 ± 1.0 %" in text
    assert "above plain" in text
    assert "from repeat-step (plain, its own gradient applied twice): this comparison does not separate" in text
    assert "not adjusted for several comparisons" in text


def test_the_sentence_claims_no_more_than_the_interval(folder: Any) -> None:
    rows = simple(folder, {"plain": [90, 91, 92], "sam": [93, 90, 95]})
    text = tables.sentence(rows)
    assert "does not separate them" in text
    for claim in ("better", "above", "beats", "outperforms", "improves"):
        assert claim not in text


@pytest.mark.parametrize("seed", range(8))
def test_better_is_never_said(folder: Any, seed: int) -> None:
    draw = random.Random(seed)
    values = {m: [90 + draw.gauss(0, 2) for _ in range(3)] for m in ("plain", "a", "b", "c")}
    rows = simple(folder, values, {"c": ["a"], "b": ["a"]})
    text = " ".join([tables.sentence(rows), *remarks(rows)])
    assert "better" not in text
    best = max(rows, key=lambda r: r.last.mean)
    if best.difference and not best.difference.separates:
        assert "points above plain" not in text.split("Against")[0]


def test_one_seed_claims_nothing(folder: Any) -> None:
    text = tables.sentence(simple(folder, {"plain": [90], "sam": [99]}))
    assert text.startswith("With one seed sam has the highest mean test accuracy")
    assert "one seed gives no interval" in text
    assert "above" not in text


def test_plain_can_be_the_highest(folder: Any) -> None:
    text = tables.sentence(simple(folder, {"plain": [95, 96, 97], "sam": [90, 91.1, 92]}))
    assert "plain has the highest mean" in text


def test_nothing_finished_says_so(folder: Any) -> None:
    folder.method("plain")
    folder.run("plain", 0, None, "unfinished")
    folder.write()
    rows = tables.rows(load(folder.path))
    assert tables.sentence(rows) == "No run has finished, so there is nothing to say yet."
    assert remarks(rows) == ["1 run is not finished; such runs are in no mean."]
    assert "n=0, 1 unfinished" in shown(rows, 100)


def test_one_method_stands_alone(folder: Any) -> None:
    assert "nothing stands beside it" in tables.sentence(simple(folder, {"plain": [95, 96]}))


def test_remarks_count_what_is_missing(full: Any) -> None:
    said = remarks(tables.rows(load(full.path)))
    assert said[-1] == "1 run failed and 1 run is not finished; such runs are in no mean."
