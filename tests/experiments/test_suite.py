"""A suite's runs: the choice of settings, runs that views share, and a real suite that is stopped and resumed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steppe.cli.main import main
from steppe.config import suites
from steppe.config.suites import Setting, Suite, SuiteRow, SuiteTask
from steppe.errors import InputError
from steppe.experiments.suite import TaskRuns
from steppe.records.suite import load_suite
from steppe.report.suite.league import standings

TINY = """
title: Planted effects
seeds: {tune: [90], final: [0, 1, 2, 3, 4, 5]}
resplit: true
settings: {data.augment: [], data.normalize: standard, batch: 50, epochs: 3, optim.name: sgd, optim.lr: 0.001}
tasks:
  table: {dataset: diabetes, model: mlp-16x1, data.val: 60}
  digits:
    {dataset: digits, model: mlp-16x1, data.train: 200, data.size: 8, optim.lr: 0.01, data.val: 60,
     data.classes: [6, 7, 8, 9], start: {data.classes: [0, 1, 2, 3, 4, 5], epochs: 1}}
  photos: {files: cifar10, model: mlp-16x1}
rows:
  plain: [plain, {weight_decay: 2}]
  twice: {settings: [{method: plain, epochs: 2}, {method: plain, epochs: 2, weight_decay: 2}]}
  again: {seeds_from: 1000, settings: [plain, {method: plain, weight_decay: 2}]}
  sam: ["sam:rho=0.01", "sam:rho=0.02"]
"""


def small(**fields: Any) -> Suite:
    rows = (
        SuiteRow("plain", (Setting("plain"), Setting("plain", lr=3))),
        SuiteRow("sam", (Setting("sam"), Setting("sam:rho=1"))),
    )
    task = SuiteTask("digits", {"model": "mlp-16x1", "epochs": 4, "optim.lr": 0.01})
    return replace(Suite("s", "S", (task,), rows, (90, 91), (0, 1, 2)), **fields)


def finish(job: Any, value: float | None, backward: float, metric: dict[str, Any] | None = None) -> None:
    """Write a made-up result."""
    job.folder.mkdir(parents=True)
    key = "metric" if metric else "accuracy"
    last = {key: value, "loss": 1.0}
    result = {"status": "failed" if value is None else "ok", "message": "", "val": {"last": last}, "seconds": 2.0}
    result |= {"passes": {"backward": backward}, "test": {"last": last}} | ({"metric": metric} if metric else {})
    (job.folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("values", "metric", "chosen"),
    [
        ([[0.5, 0.7], [0.9, 0.4]], None, 1),
        ([[0.5, 0.7], [0.7, 0.5]], None, 0),  # equal: the first
        ([[0.5, 0.7], [0.9, None]], None, 0),  # a failed run
        ([[None, 0.7], [0.1, None]], None, None),
        ([[50.0, 70.0], [90.0, 40.0]], {"name": "RMSE", "unit": "", "higher": False, "percent": False}, 0),
    ],
)
def test_the_best_mean_on_validation_is_chosen(tmp_path, values, metric, chosen):
    suite = small()
    work = TaskRuns(suite, suite.tasks[0], suite.rows, suite.final, tmp_path)
    for row in suite.rows:
        assert work.choice(row) is None
        for jobs, own in zip(work.tuning(row), values, strict=True):
            for job, value in zip(jobs, own, strict=True):
                finish(job, value, 1.0 if row.name == "plain" else 2.0, metric)
    plain, sam = (work.choice(row) for row in suite.rows)
    assert plain is not None and sam is not None
    assert (plain.chosen, plain.values) == (sam.chosen, sam.values) == (chosen, values)
    for row, choice, shared in zip(suite.rows, (plain, sam), (True, False), strict=True):
        views = [work.comparison(row, choice, view) for view in ("compute", "epochs")]
        assert (views[0] == views[1]) is (shared or chosen is None)
        if chosen is not None:
            runs = [job.run for job in views[1]]
            assert [r.seed for r in runs] == [0, 1, 2] and {r.label for r in runs} == {row.settings[chosen].method}
            assert {r.optim.lr for r in runs} == {0.01 * row.settings[chosen].lr}
            assert not {j.folder for j in views[0]} & {j.folder for own in work.tuning(row) for j in own}
    # 2 rows with 3 seeds, of which plain's runs are those of both views
    assert work.left()[0] == (9 if chosen is not None else 0)


@pytest.mark.parametrize(
    ("plain_values", "factors"),
    [([0.5, 0.9, 0.7], [(3, 1), (1, 10)]), ([0.9, None, 0.8], [(1, 1), (1, 10)]), ([None] * 3, [(1, 1), (3, 1)])],
)
def test_settings_of_a_method_are_combined_with_the_best_of_plain_training(tmp_path, plain_values, factors):
    plain = SuiteRow("plain", (Setting("plain"), Setting("plain", lr=3), Setting("plain", weight_decay=10)))
    sam = SuiteRow("sam", (Setting("sam"), Setting("sam:rho=1")), combined=2)
    with pytest.raises(InputError, match="unequal numbers of settings .3 for plain, 4 for sam"):
        small(rows=(plain, sam))
    task = SuiteTask("digits", {"model": "mlp-16x1", "optim.lr": 0.01, "optim.weight_decay": 0.1})
    suite = small(tasks=(task,), rows=(plain, replace(sam, settings=sam.settings[:1], combined=3)))
    two = replace(suite.rows[1], combined=2)
    work = TaskRuns(suite, suite.tasks[0], (plain, two), (0,), tmp_path)
    assert next(name for name, _ in work.phases()) == "tuning of plain training and of rows with factors"
    before = {job for own in work.tuning(two) for job in own}
    for job in before:
        finish(job, 0.5, 2.0)
    assert work.choice(two) is None  # plain training is not tuned yet
    for jobs, value in zip(work.tuning(plain), plain_values, strict=True):
        for job in jobs:
            finish(job, value, 1.0)
    assert [(s.method, s.lr, s.weight_decay) for s in work.settings(two)] == [("sam", *f) for f in factors]
    runs = [jobs[0].run for jobs in work.tuning(two)]
    assert [(r.optim.lr, r.optim.weight_decay) for r in runs] == [
        (pytest.approx(0.01 * lr), pytest.approx(0.1 * decay)) for lr, decay in factors
    ]
    assert {r.label for r in runs} == {"sam"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": (1,)}, "tunes and compares on seed 1"),
        ({"final": ()}, "seeds.final is"),
        ({"rows": small().rows[1:]}, "has no row plain"),
        (
            {"rows": (small().rows[0], SuiteRow("sam", (Setting("sam"),)))},
            "unequal numbers of settings .2 for plain, 1 for sam",
        ),
        ({"tasks": (SuiteTask("../up", {}),)}, "task is '../up'"),
        (
            {"tasks": (SuiteTask("a", {}, without=("sma",)),)},
            "unknown row of suite s in without 'sma'; did you mean 'sam'",
        ),
        ({"tasks": ()}, "has no tasks"),
    ],
)
def test_an_unfair_or_impossible_suite_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        small(**fields)


def test_the_built_in_suites_are_fair_and_every_setting_is_a_run():
    for name in suites.names():
        suite = suites.load(name)
        tasks, rows, missing = suite.choose(
            datasets=["cifar10:x"] if any(task.files for task in suite.tasks) else []
        )
        assert not missing and len(rows) == len(suite.rows)
        controls = {row.name for row in rows if row.control}
        assert {"two-step", "repeat-step", "plain-twice", "plain-again"} <= controls
        for task in tasks:
            digests = {
                task.run(s, r.seeds_from, "gradients").digest() for r in rows for s in r.settings_with(suite.plain)
            }
            assert len(digests) == 4 * len(rows)  # no setting twice


def test_each_seed_of_a_suite_has_a_split_of_its_own_which_all_rows_share(tmp_path):
    suite = suites.load("small-suite")
    task = next(task for task in suite.tasks if task.name == "fine-tuning")
    work = TaskRuns(suite, task, suite.rows, suite.final, tmp_path)
    for row in suite.rows:
        for number, job in zip(suite.tune, work.tuning(row)[0], strict=True):
            start = read_start(job.run.init, work)
            assert job.run.data.split_seed == start.data.split_seed == number
            assert job.run.seed == start.seed == row.seeds_from + number
    shared = replace(task, resplit=False)
    assert {shared.run(Setting("plain"), seed, "epochs", split=seed).data.split_seed for seed in (0, 7)} == {0}


def read_start(folder: str, work: TaskRuns) -> Any:
    return next(job.run for job in work.phases()[0][1]() if job.folder.name == Path(folder).name)


def test_a_suite_takes_tasks_and_rows_of_another(tmp_path):
    tasks = "tasks: {table: {epochs: 3}, wine: {dataset: wine}}"
    text = f"{{title: own, like: small-suite, {tasks}, rows: {{plain: , sam: }}}}"
    (tmp_path / "own.yaml").write_text(text)
    own, base = suites.load(str(tmp_path / "own.yaml")), suites.load("small-suite")
    table = next(task for task in base.tasks if task.name == "table")
    assert own.tasks[0] == replace(table, values=dict(table.values) | {"epochs": 3}, without=())
    assert own.rows == tuple(row for row in base.rows if row.name in ("plain", "sam"))
    assert (own.tune, own.final) == (base.tune, base.final) and own.tasks[1].values["batch"] == 32
    (tmp_path / "own.yaml").write_text(text.replace("small-suite", "small"))
    with pytest.raises(InputError, match="unknown suite in like 'small'; did you mean 'small-suite'"):
        suites.load(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("text", ["", "[]", "title: x", "a: [", "tasks: {a: 1}\nrows: {}\nseeds: {}\ntitle: x"])
def test_a_file_that_is_no_suite_is_refused(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match="is no suite"):
        suites.load(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--tasks digits", "tasks is digits and there is no suite; add recipe=small-suite"),
        ("--within 0", "within is 0; give a number of seconds above 0"),
        ("recipe=small-suite --tasks digit", "unknown task of suite small-suite 'digit'; did you mean 'digits'"),
        ("recipe=small-suite --methods samm", "unknown method of suite small-suite 'samm'"),
        ("recipe=small-suite --epochs 3", "epochs is 3 and suite small-suite has settings for each task"),
        ("recipe=small-suite scale=0.1", "scale is 0.1 and a suite is not scaled"),
        ("recipe=small-suite --seeds 1 100", "seeds is 100, a seed of suite small-suite's tuning"),
        ("recipe=small-suite --tasks cifar-few", "no task is left of suite small-suite: it needs files; give"),
        (
            "recipe=small-suite --datasets digits",
            "datasets is 'digits'; the files that the suite's tasks need are",
        ),
        ("recipe=none.yaml", "recipe is 'none.yaml', and it cannot be read"),
    ],
)
def test_what_a_suite_cannot_do_is_refused_in_one_line(tmp_path, capsys, arguments, message):
    assert main(["compare", *arguments.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def steppe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steppe", "compare", "recipe=tiny.yaml", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_planted_effects_are_ranked_as_they_must_be_after_stops_and_in_pieces(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    first = steppe(tmp_path, "--tasks", "table", "--within", "0.01", "--out", "pieces")
    assert first.returncode == 0, first.stderr
    assert "stopped in time; at most" in first.stdout
    begun = {p.parent.name: p.read_text() for p in (tmp_path / "pieces").glob("table/runs/*/result.json")}
    assert len(begun) < 8  # of tuning alone
    for arguments in (["--tasks", "table", "--methods", "twice", "again"], ["--tasks", "table", "digits"]):
        done = steppe(tmp_path, *arguments, "--out", "pieces")
        assert done.returncode == 0, done.stderr
    assert "no run is left" in done.stdout
    for digest, text in begun.items():
        assert (tmp_path / "pieces/table/runs" / digest / "result.json").read_text() == text
    whole = steppe(tmp_path, "--out", "whole")
    assert "task photos is left out: it needs files; give --datasets cifar10:PATH" in whole.stdout
    metrics = [
        {p.relative_to(tmp_path / out): p.read_text() for p in (tmp_path / out).glob("*/runs/*/metrics.jsonl")}
        for out in ("pieces", "whole")
    ]
    assert metrics[0] == metrics[1]
    for view in ("compute", "epochs"):
        rows = {s.row: s for s in standings(load_suite(tmp_path / "pieces"), view)}
        assert (rows["twice"].won, rows["twice"].first, rows["twice"].rank) == (2, 2, 1.0)
        assert (rows["again"].won, rows["again"].lost) == (0, 0)
    again = steppe(tmp_path, "--out", "whole")
    assert "runs at a time" not in again.stdout and (tmp_path / "whole/report.html").exists()


@pytest.mark.slow
def test_a_comparison_stops_in_time_and_goes_on(tmp_path):
    options = ["--models", "mlp-16x1", "--datasets", "diabetes", "--data.augment", "none", "--epochs", "150"]
    command = [sys.executable, "-m", "steppe", "compare", "--methods", "plain", "ema", *options, "--seeds", "0"]
    outputs = []
    for arguments in (["--within", "0.01", "--out", "a"], ["--out", "a"], ["--out", "b"]):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "2 runs left; the same command goes on" in outputs[0] and "left" not in outputs[1].splitlines()[-1]
    runs = [{p.parent.name: p.read_text() for p in (tmp_path / out).glob("runs/*/metrics.jsonl")} for out in "ab"]
    assert runs[0] == runs[1] and len(runs[0]) == 2
