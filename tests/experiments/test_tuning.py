"""Tuning: ordinary runs as trials, the same result after a kill, and a gain only if it is significant."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import t as student

import steppe
from steppe import methods
from steppe.cli import help_text, main
from steppe.config import Data, Optim, Run
from steppe.experiments.run_lock import locked_run
from steppe.training.run import digest, load_data, train_run

optuna = pytest.importorskip("optuna")

from steppe.experiments.tuning import Range, TuningBudget, TuningResult, search, space, with_values  # noqa: E402
from steppe.experiments.tuning.plot import curve  # noqa: E402
from steppe.experiments.tuning.result import result_as_dict, table, verdict  # noqa: E402
from steppe.experiments.tuning.search import Candidate, _rank  # noqa: E402
from steppe.tasks.metric import Metric  # noqa: E402

RUN = Run(
    method="sam",
    model="resnet-thin",
    epochs=2,
    batch=30,
    data=Data(train=120, val=60.0, test=20, size=12, augment=()),
    optim=Optim(lr=1e-2),
)
FLAGS = [
    *("--method", "sam", "--model", "resnet-thin", "--epochs", "2", "--batch", "30", "--optim.lr", "0.01"),
    *("--data.train", "120", "--data.val", "60", "--data.test", "20", "--data.size", "12", "--data.augment"),
]
SMALL = TuningBudget(trials=3, confirm=1, pruner="none")


@pytest.fixture(scope="module")
def images():
    return load_data(RUN)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("tune")
    return out, search(RUN, space("sam"), SMALL, out, images)


# -- which settings --------------------------------------------------------------------------------------------


def test_default_ranges_surround_the_default_and_are_accepted():
    for name in methods.names():
        if not {"rho", "gamma", "alpha", "sigma", "lam"} & {
            k for k, v in vars(methods.make(name).resolved).items() if v
        }:
            with pytest.raises(steppe.InputError, match="has none of rho, gamma, alpha, sigma, lam"):
                space(name)
            continue
        (r,) = space(name)
        assert r.default / 10.001 <= r.low < r.default <= r.high <= r.default * 10.001
        for value in (r.low, r.high):
            method = with_values(methods.parse(name), {r.name: value})
            assert getattr(method, r.name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("spec", "settings", "low", "high", "log"),
    [
        ("sam", (), 0.005, 0.5, True),
        ("sam:rho=0.2+gc", (), 0.02, 2.0, True),
        ("mixed-sam", ("alpha",), 0.02, 1.0, True),  # a share cannot exceed 1
        ("rwp", ("alpha=0..1",), 0.0, 1.0, False),
        ("rwp", ("gamma=1e-3..1e-1",), 1e-3, 0.1, True),
        ("ema", ("decay=0.9..0.999",), 0.9, 0.999, True),
    ],
)
def test_ranges_of_named_settings(spec, settings, low, high, log):
    (r,) = space(spec, settings)
    assert (r.low, r.high, r.log) == (pytest.approx(low, rel=0.06), pytest.approx(high, rel=0.06), log)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("plain", (), "has none of rho"),
        ("sam", ("roh",), "unknown setting of sam 'roh'; did you mean 'rho'"),
        ("sam", ("rho=1..0",), "write rho=LOW..HIGH"),
        ("sam", ("rho=much",), "write rho=LOW..HIGH"),
        ("sam", ("rho=-1..1",), "rho is -1"),
        ("sam", ("rho", "rho=0.1..1"), "names one twice"),
        ("sam", ("decay",), "decay is 0 by default"),
    ],
)
def test_settings_that_cannot_be_searched_are_refused(spec, settings, message):
    with pytest.raises(steppe.InputError, match=message):
        space(spec, settings)


@given(st.floats(1e-4, 1e20).map(lambda v: float(f"{v:.3g}")))
@hypothesis_settings(max_examples=50, deadline=None)
def test_a_setting_is_set_in_the_method_that_has_it(value):
    for spec in ("sam", "sam:rho=0.3,ascents=2", "sam+gc", "gc+sam:norm=tensor", "sam:start=0.5+ema"):
        written = repr(with_values(methods.parse(spec), {"rho": value}))
        (rho,) = re.findall(r"rho=([^,)]+)", written)
        assert float(rho) == value
        usual = repr(methods.parse(spec.replace("rho=0.3", "rho=0.05")))
        assert written.replace(f"rho={rho}", "rho=0.05") == usual


# -- the search ------------------------------------------------------------------------------------------------


def test_trials_are_ordinary_runs_and_the_best_is_the_best(searched, images):
    out, result = searched
    assert len(result.trials) == 3
    assert result.trials[0].values == {"rho": 0.05}  # the default comes first
    assert len({t.values["rho"] for t in result.trials}) == 3
    for candidate in [*result.trials, result.baseline]:
        run = replace(RUN, method=candidate.method)
        assert candidate.runs == [digest(run)]
        path = out / "runs" / digest(run) / "result.json"
        stamp = path.stat().st_mtime_ns
        stored = train_run(run, path.parent, images)
        assert path.stat().st_mtime_ns == stamp
        assert candidate.accuracies == [stored["val"]["last"]["accuracy"]]
        assert all(r.low <= v <= r.high for r, v in zip(result.ranges, candidate.values.values(), strict=False))
    assert result.best.accuracy == max(t.accuracy for t in result.trials)
    assert result.fresh == [1]
    for method, values in ((result.best.method, result.tuned_again), ("plain", result.plain_again)):
        for seed, value in zip(result.fresh, values, strict=True):
            run = replace(RUN, method=method, seed=seed)
            assert value == train_run(run, out / "runs" / digest(run), images)["val"]["last"]["accuracy"]


def test_a_finished_search_trains_nothing_and_another_one_is_refused(searched, images, monkeypatch):
    out, result = searched
    reports = []
    again = search(RUN, space("sam"), SMALL, out, images, lambda run, news: reports.append(news))
    assert again == result
    assert all(isinstance(news, str) for news in reports)
    with pytest.raises(steppe.InputError, match="holds another search"):
        search(replace(RUN, epochs=3), space("sam"), SMALL, out, images)
    with pytest.raises(steppe.InputError, match="holds another search"):
        search(RUN, space("sam", ["rho=0.1..1"]), SMALL, out, images)
    monkeypatch.setattr(sys.modules[search.__module__], "locked_run", partial(locked_run, patience=0.1))
    with locked_run(out), pytest.raises(steppe.RunError, match="another process is at work"):
        search(RUN, space("sam"), SMALL, out, images)


def test_a_finished_search_needs_no_images_and_another_one_does(searched, tmp_path, monkeypatch, capsys):
    out, result = searched
    missing = steppe.InputError("there is no photos")
    assert search(RUN, space("sam"), SMALL, out, missing) == result
    for budget, folder in ((replace(SMALL, trials=4), out), (replace(SMALL, confirm=2), out), (SMALL, tmp_path)):
        with pytest.raises(steppe.InputError, match="there is no photos"):
            search(RUN, space("sam"), budget, folder, missing)
    assert not list(tmp_path.iterdir())
    with pytest.raises(steppe.InputError, match="holds another search"):
        search(replace(RUN, epochs=3), space("sam"), SMALL, out, missing)
    assert search(RUN, space("sam"), SMALL, out, missing) == result

    def load(_: Run) -> None:
        raise missing

    monkeypatch.setattr("steppe.training.run.load_data", load)
    arguments = ["tune", *FLAGS, "--trials", "3", "--confirm", "1", "--pruner", "none"]
    assert main.main([*arguments, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "the search is finished and needs no images (there is no photos)" in output
    assert result.best.method in output
    assert main.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert "there is no photos" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_same_result(searched, tmp_path, images):
    _, undisturbed = searched
    out = tmp_path / "killed"
    command = [*(sys.executable, "-m", "steppe", "tune"), *FLAGS, "--trials", "3", "--confirm", "1"]
    command += ["--pruner", "none", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    # plain and one trial have ended, the second trains or is about to
    while len(list(out.glob("runs/*/result.json"))) < 2 and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("runs/*/result.json"))) < 6
    assert search(RUN, space("sam"), SMALL, out, images) == undisturbed


def test_a_stop_in_the_middle_of_a_trial_changes_nothing(searched, tmp_path, images):
    class StopError(Exception):
        pass

    def stop(run, news):
        if run.label == third and not isinstance(news, str) and news.val_accuracy is not None:
            raise StopError

    third = searched[1].trials[2].method
    with pytest.raises(StopError):
        search(RUN, space("sam"), SMALL, tmp_path, images, stop)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "tune.journal"))
    study = optuna.load_study(study_name="tune", storage=optuna.storages.JournalStorage(backend))
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert search(RUN, space("sam"), SMALL, tmp_path, images) == searched[1]


def test_a_pruned_trial_keeps_its_run(tmp_path, images, monkeypatch):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    monkeypatch.setattr(optuna.pruners, "NopPruner", Second)
    result = search(RUN, space("sam"), replace(SMALL, trials=3, confirm=1, seeds=2), tmp_path, images)
    assert [t.state for t in result.trials] == ["complete", "pruned", "complete"]
    pruned = result.trials[1]
    assert result.best != pruned
    folder = tmp_path / "runs" / pruned.runs[0]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1  # one epoch of the first seed, and none of the second
    assert pruned.accuracies == [json.loads(lines[0])["val_accuracy"]]
    assert train_run(replace(RUN, method=pruned.method), folder, images)["epochs"] == 2
    assert [len(t.accuracies) for t in (result.best, result.baseline)] == [2, 2]
    assert result.fresh == [2]
    legend = curve(result).axes[0].get_legend()
    best = f"best, {result.best.values['rho']:g}"
    assert [entry.get_text() for entry in legend.get_texts()] == ["plain", "sam", "pruned", best]


def test_the_time_limit_ends_the_search_and_an_empty_budget_is_refused(tmp_path, images):
    budget = replace(SMALL, trials=50, seconds=0.01, confirm=1)
    result = search(RUN, space("sam"), budget, tmp_path, images)
    assert len(result.trials) == 1
    assert result.best.values == {"rho": 0.05}
    for field in ("trials", "seeds", "confirm", "seconds"):
        with pytest.raises(steppe.InputError, match=r"within is 0|is 0; give at least 1"):
            TuningBudget(**{field: 0})


def test_trials_that_diverge_are_never_the_best(tmp_path, images):
    run = replace(RUN, optim=Optim(name="sgd", lr=0.05))
    ranges = [Range("rho", 0.05, 1e30, True, 0.05)]
    result = search(run, ranges, replace(SMALL, trials=3, confirm=1), tmp_path, images)
    assert "failed" in {t.state for t in result.trials}
    assert result.best.state == "complete"
    assert all(t.accuracy == 0 for t in result.trials if t.state == "failed")


# -- the answer ------------------------------------------------------------------------------------------------


def result_of(tuned: list[float], plain: list[float], best: float = 0.1) -> TuningResult:
    def candidate(method: str, **values: float) -> Candidate:
        return Candidate(values, method, "complete", [0.5], 1.0, ["0"])

    one = candidate(f"sam:rho={best}", rho=best)
    ranges = [Range("rho", 0.01, 1.0, True, 0.05)]
    return TuningResult(RUN, ranges, [one], candidate("plain"), one, tuned, plain, list(range(len(tuned))))


def test_a_gain_is_claimed_only_if_it_is_significant():
    cases = {
        "beats plain": ([0.92, 0.94, 0.93], [0.90, 0.911, 0.905]),
        "No significant gain over plain": ([0.92, 0.90, 0.93], [0.90, 0.92, 0.905]),
        "is worse than plain": ([0.80, 0.82, 0.81], [0.90, 0.911, 0.905]),
        "no interval from one seed": ([0.95], [0.90]),
    }
    for text, (tuned, plain) in cases.items():
        result = result_of(tuned, plain)
        assert text in verdict(result)[0]
        confirmation = result_as_dict(result)["confirmation"]
        pairs = [100 * (a - b) for a, b in zip(tuned, plain, strict=True)]
        assert confirmation["points"]["mean"] == pytest.approx(fmean(pairs))
        assert confirmation["beats_plain"] is (text == "beats plain")
        if len(pairs) > 1:
            half = student.ppf(0.975, len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs))
            assert confirmation["points"]["low"] == pytest.approx(fmean(pairs) - half)


def test_where_lower_is_better_the_smallest_is_best_and_every_text_has_name_and_unit():
    rmse = Metric("RMSE", "mm", higher=False, percent=False)

    def candidate(state: str, values: list[float], **settings: float) -> Candidate:
        return Candidate(settings, "sam", state, values, 1.0, ["0"])

    trials = [candidate("complete", [v], rho=rho) for v, rho in ((0.031, 0.1), (0.029, 0.2), (0.034, 0.3))]
    trials.append(candidate("failed", [math.inf], rho=0.9))
    best = max(trials[:3], key=lambda t: _rank(t, rmse))
    assert best.values == {"rho": 0.2}
    tuned, plain = [0.029, 0.0301, 0.0289], [0.031, 0.0325, 0.0309]
    ranges = [Range("rho", 0.01, 1.0, True, 0.05)]
    result = TuningResult(RUN, ranges, trials, candidate("", plain[:1]), best, tuned, plain, [1, 2, 3], rmse)
    pairs = [a - b for a, b in zip(tuned, plain, strict=True)]
    half = student.ppf(0.975, 2) * stdev(pairs) / math.sqrt(3)
    amount = f"{fmean(pairs):.5f} mm [{fmean(pairs) - half:.5f}, {fmean(pairs) + half:.5f}]"
    assert verdict(result) == [f"sam beats plain: {amount} of validation RMSE (lower is better) on 3 fresh seeds."]
    rows = table(result)
    assert str(rows.columns[1].header) == "validation RMSE, mm (lower is better)"
    assert [*rows.columns[2].cells] == ["best", "complete", "complete", "failed", "baseline"]
    assert [float(v) for v in [*rows.columns[1].cells][:3]] == [0.029, 0.031, 0.034]
    content = json.loads(json.dumps(result_as_dict(result), allow_nan=False))
    assert content["confirmation"]["difference"]["mean"] == pytest.approx(fmean(pairs))
    assert content["confirmation"]["beats_plain"] and content["metric"] == rmse.to_dict()
    figure = curve(result)
    assert (
        figure.axes[0].get_title(loc="left") == "sam: validation RMSE after the last epoch, mm (lower is better)"
    )
    assert not re.search("accura|%|points", json.dumps(content["trials"]) + verdict(result)[0])


def test_a_best_value_at_the_end_of_its_range_is_reported():
    assert len(verdict(result_of([0.9], [0.8]))) == 1
    for best in (0.011, 0.99):
        assert "at the end of its range 0.01..1" in verdict(result_of([0.9], [0.8], best))[1]
    # a value inside the range with the same accuracy, which lost by its loss
    result = result_of([0.9], [0.8], 0.99)
    tied = replace(result.best, values={"rho": 0.1}, loss=2.0)
    result = replace(result, trials=[*result.trials, tied])
    (_, sentence) = verdict(result)
    assert sentence == "In the search 1 other setting had the same validation accuracy; the loss decided."
    assert [*table(result).columns[-1].cells] == ["best", "as accurate as the best", "baseline"]


def test_the_command_prints_json_or_a_table_and_writes_the_result(searched, capsys):
    out, result = searched
    arguments = ["tune", *FLAGS, "--trials", "3", "--confirm", "1", "--pruner", "none", "--out", str(out)]
    assert main.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "tune.json").read_text())
    assert printed["best"]["method"] == result.best.method
    assert [t["accuracy"] for t in printed["trials"]] == [t.accuracy for t in result.trials]
    assert "test" not in printed["best"]
    assert (out / "tune.svg").read_text().startswith("<?xml")
    assert (out / "tune.png").stat().st_size > 5000
    assert main.main(arguments) == 0
    output = capsys.readouterr().out
    assert result.best.method in output and "baseline" in output
    assert main.main(["tune", "--method", "plain", "--out", str(out)]) == 2
    assert "has none of rho" in capsys.readouterr().err


def test_the_guide_is_true(capsys):
    text = (Path(__file__).parents[2] / "docs/how-to/tune.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, "tune.md", "exec"), {})
    assert capsys.readouterr().out.endswith(" 2\n")
    commands = re.findall(
        r"^ *steppe (tune .*?)(?: +#.*| {3,}.*)?$", text + help_text.EXAMPLES["tune"], re.MULTILINE
    )
    assert len(commands) == 8
    for line in commands:
        assert main.main([*line.split(), "--dataset", "folder:nowhere"]) == 2
        assert "nowhere" in capsys.readouterr().err
