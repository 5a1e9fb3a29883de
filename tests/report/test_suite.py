"""A suite's league table: recomputed from made-up records by other code; its page in a browser."""

import csv
import io
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from support.browsing import Visit
from support.recorded import Folder

from steppe.errors import InputError
from steppe.records.suite import load_suite
from steppe.report.formatting import TIMES
from steppe.report.metric_text import MetricText
from steppe.report.suite import league, page, tables
from steppe.report.suite.league import excess_over, standings
from steppe.tasks.metric import Metric

RMSE = {"name": "RMSE", "unit": "mm", "higher": False, "percent": False}
ROWS = {"plain": 0.0, "sam": 0.5, "ema": -0.3, "rwp": 0.1, "two-step": 0.2}
TASKS = ("digits", "table", "noisy")
SEEDS = range(5)


def value(view: str, task: str, row: str, seed: int) -> float:
    """Return a made-up result: a share, or an RMSE on the table."""
    shared, own = random.Random(f"{task}{seed}"), random.Random(f"{view}{task}{row}{seed}")
    gain = ROWS[row] + shared.gauss(0, 1) + own.gauss(0, 0.3)
    return 50 - 3 * gain if task == "table" else round((0.93 + 0.01 * gain) * 360) / 360


@pytest.fixture(scope="module")
def suite(tmp_path_factory: Any) -> Path:
    out: Path = tmp_path_factory.mktemp("suite")
    for task in TASKS:
        folder = Folder(out / task)
        folder.about["table"] = {"train": 300, "val": 50, "test": 80, "features": 10, "metric": RMSE}
        for row in ROWS:
            folder.method(row, controls=["two-step"] if row in ("sam", "rwp") else [])
        for view, file in (("compute", "compare.json"), ("epochs", "epochs.json")):
            first = len(folder.compare["runs"])
            for seed in SEEDS:
                for row in ROWS:
                    if (task, row) != ("noisy", "rwp"):  # a row without a task
                        folder.run(row, seed, value(view, task, row, seed), dataset=task, epochs=2)
            runs = folder.compare["runs"][first:]
            (folder.path / file).write_text(json.dumps(folder.compare | {"runs": runs}))
        rows = {
            row: {"settings": [row, f"{row}, lr {TIMES} 3"], "values": [[0.5], [0.6]], "chosen": 1} for row in ROWS
        }
        rows["ema"] |= {"values": [[None], [None]], "chosen": None}
        (folder.path / "tuning.json").write_text(json.dumps({"seeds": [90], "rows": rows}))
    content = {
        "format": 1, "created": "2026-03-01T12:00:00+00:00", "command": "steppe compare recipe=small-suite",
        "environment": {"steppe": "0.1.0"}, "title": "A <b>suite</b>", "about": "",
        "seeds": {"tune": [90], "final": [*SEEDS]},
        "tasks": {task: {"about": f"about {task}"} for task in (*TASKS, "photos")},
        "rows": {row: {"control": row == "two-step", "settings": [row]} for row in ROWS},
        "missing": {"photos": "it needs files"},
    }  # fmt: skip
    (out / "suite.json").write_text(json.dumps(content))
    return out


def results(view: str) -> dict[tuple[str, str], np.ndarray]:
    """Return the values of each task and row as printed, in the order of the seeds."""
    return {
        (task, row): np.array([value(view, task, row, s) * (1 if task == "table" else 100) for s in SEEDS])
        for task in TASKS
        for row in ROWS
        if (task, row) != ("noisy", "rwp")
    }


@pytest.mark.parametrize("view", ["compute", "epochs"])
def test_intervals_wins_ranks_and_profiles_are_those_of_another_computation(suite, view):
    own = results(view)
    better = {task: -1 if task == "table" else 1 for task in TASKS}
    rows = standings(load_suite(suite), view)
    assert {s.row for s in rows} == set(ROWS) and rows[-1].row == "two-step" and rows[-1].control
    assert [s.complete for s in rows[:-1]] == [True, True, True, False]  # rwp, which lacks a task, is last
    ranked = [s.rank for s in rows[:-2]]
    assert ranked == sorted(ranked)
    for s in rows:
        tasks = [t for t in TASKS if (t, s.row) in own]
        assert list(s.cells) == tasks
        won, lost, ranks, firsts = 0, 0, [], 0
        for task in tasks:
            d = own[task, s.row] - own[task, "plain"]
            shown = s.cells[task].difference
            if s.row == "plain":
                assert shown is None
            else:
                low, high = scipy.stats.t.interval(0.95, 4, d.mean(), scipy.stats.sem(d))
                assert shown is not None and shown.low is not None and shown.high is not None
                assert (shown.mean, shown.low, shown.high) == pytest.approx((d.mean(), low, high))
                won += (low if better[task] > 0 else -high) > 0
                lost += (high if better[task] > 0 else -low) < 0
            means = {r: better[task] * own[task, r].mean() for r in ROWS if r != "two-step" and (task, r) in own}
            if s.row in means:
                firsts += means[s.row] == max(means.values())
                peers = {r: m for r, m in means.items() if r in ("plain", "sam", "ema", s.row)}
                ranks.append(scipy.stats.rankdata([-m for m in peers.values()])[[*peers].index(s.row)])
            best = max(means.values())
            errors = (
                (-best, own[task, s.row].mean())
                if better[task] < 0
                else (100 - best, 100 - own[task, s.row].mean())
            )
            assert s.excess[task] == pytest.approx(errors[1] / errors[0] - 1, abs=1e-9)
        assert (s.won, s.lost) == (won, lost)
        if s.control:
            assert s.rank is s.first is None
        else:
            assert s.rank == pytest.approx(np.mean(ranks)) and s.first == firsts
        for x in (0, 0.03, 0.1, 1):
            assert s.share_within(x) == pytest.approx(np.mean([s.excess[t] <= x + 1e-9 for t in tasks]))
    assert any(s.won for s in rows) and any(s.lost for s in rows)  # the records have both


def test_the_excess_of_a_metric_without_an_error_or_of_no_error():
    accuracy, other = MetricText(), MetricText(Metric("R2", percent=False))
    assert excess_over(0.5, 0.7, other) is None
    assert excess_over(100, 100, accuracy) == 0
    assert excess_over(99, 100, accuracy) == math.inf
    assert excess_over(98, 99, accuracy) == pytest.approx(1)
    likelihood = MetricText(Metric("NLL", higher=False, percent=False))
    assert excess_over(-0.985, -0.995, likelihood) is None
    assert (excess_over(0.0, 0.0, likelihood), excess_over(0.1, 0.0, likelihood)) == (0, math.inf)


def test_csv_and_markdown_have_the_numbers_and_the_chosen_settings(suite):
    content = load_suite(suite)
    leagues = page.leagues_of(content)
    lines = list(csv.DictReader(io.StringIO(tables.csv(leagues))))
    assert len(lines) == 2 * (len(TASKS) * len(ROWS) - 1)
    for line in lines:
        own = results(line["view"])[line["task"], line["method"]]
        assert float(line["mean"]) == pytest.approx(own.mean()) and float(line["std"]) == pytest.approx(
            own.std(ddof=1)
        )
        assert line["better"] == ("lower" if line["task"] == "table" else "higher")
    text = tables.markdown(content, leagues)
    assert "| sam |" + 3 * f" sam, lr {TIMES} 3 |" in text
    assert "| ema | none finished |" in text
    assert "Task photos is left out: it needs files." in text


def test_the_sentences_name_the_best_rank_and_the_wins(suite):
    rows = standings(load_suite(suite), "compute")
    best, wins = league.lede(rows)
    assert re.match(
        rf"{rows[0].row} has the best mean rank, {rows[0].rank:.1f} among 3 methods over 3 tasks "
        r"\(1 method without a result on some task left out\)",
        best,
    )
    named = {m: int(n) for m, n in re.findall(r"([a-z-]+) on (\d)", wins)}
    assert named == {s.row: s.won for s in rows if not s.control and s.won > s.lost}
    assert "of 8 differences without any effect, about 0.2 would" in league.chance(rows)


def test_methods_of_other_tasks_are_not_ranked_against_each_other_and_one_seed_has_no_chance(suite, tmp_path):
    shutil.copytree(suite, tmp_path / "suite")
    for path in tmp_path.glob("suite/*/*.json"):
        content = json.loads(path.read_text())
        if "runs" in content:  # sam on digits alone, ema on the table alone, one seed
            kept = {"digits": ("plain", "sam"), "table": ("plain", "ema")}.get(path.parent.name, ())
            content["runs"] = [r for r in content["runs"] if r["seed"] == 0 and r["method"] in kept]
            path.write_text(json.dumps(content))
    rows = standings(load_suite(tmp_path / "suite"), "compute")
    assert league.lede(rows)[0] == (
        "No two methods have a result on each of 2 tasks yet: mean ranks are not comparable."
    )
    assert league.chance(rows) == ""


def test_a_folder_that_is_no_suite_or_damaged_is_refused(suite, tmp_path):
    with pytest.raises(InputError, match=r"has no suite\.json"):
        load_suite(tmp_path)
    (tmp_path / "suite.json").write_text('{"format": 1, "tasks": {}}')
    with pytest.raises(InputError, match="is damaged"):
        load_suite(tmp_path)


def test_the_page_shows_both_views_sorts_and_loads_nothing(suite, browser):
    written = page.write(suite)
    assert "A &lt;b&gt;suite&lt;/b&gt;" in written.read_text()
    visit = Visit(browser, f"file://{written}", viewport={"width": 1280, "height": 900})
    assert visit.page.locator("h2").all_inner_texts()[:3] == [
        "At equal compute", "At equal epochs", "Performance profiles",
    ]  # fmt: skip
    table = visit.page.locator("table.sortable").first
    assert table.locator("tbody tr").count() == len(ROWS)
    table.locator("thead button").first.click()
    assert [t.split("\n")[0] for t in table.locator("tbody th").all_inner_texts()] == sorted(ROWS)
    assert visit.page.locator(".figure .large svg").is_visible()
    assert visit.messages == [] and {a.split(":")[0] for a in visit.requests} == {"file"}
    visit.context.close()
