"""The search for settings: ordinary runs, the same after a kill, judged on validation, with an honest answer."""

from __future__ import annotations

import json
import math
import os
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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

import steppe
from steppe import methods
from steppe.cli import help_text, main
from steppe.config import Data, Optim, Run
from steppe.experiments.run_lock import locked_run
from steppe.training import run as engine

optuna = pytest.importorskip("optuna")

from steppe.experiments.tuning import Range, TuningBudget, TuningResult, search, space, spec_with  # noqa: E402
from steppe.experiments.tuning.plot import curve  # noqa: E402
from steppe.experiments.tuning.result import result_as_dict, verdict  # noqa: E402
from steppe.experiments.tuning.search import Candidate  # noqa: E402

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
    return engine.load_data(RUN)


@pytest.fixture(scope="module")
def found(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("tune")
    return out, search(RUN, space("sam"), SMALL, out, images)


# -- which settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in methods.names() if n not in ("plain", "gc")])
def test_ranges_are_around_the_default_and_accepted(name):
    if not {"rho", "gamma", "alpha", "sigma", "lam"} & {k for k, v in vars(methods.make(name)).items() if v}:
        with pytest.raises(steppe.InputError, match="has none of rho, gamma, alpha, sigma, lam"):
            space(name)
        return
    (r,) = space(name)
    assert r.default / 10.001 <= r.low < r.default <= r.high <= r.default * 10.001
    for value in (r.low, r.high):
        assert getattr(methods.parse(spec_with(name, {r.name: value})), r.name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("spec", "wanted", "low", "high", "log"),
    [
        ("sam", (), 0.005, 0.5, True),
        ("sam:rho=0.2+gc", (), 0.02, 2.0, True),
        ("mixed-sam", ("alpha",), 0.02, 1.0, True),  # a share cannot exceed 1
        ("rwp", ("alpha=0..1",), 0.0, 1.0, False),
        ("rwp", ("gamma=1e-3..1e-1",), 1e-3, 0.1, True),
        ("ema", ("decay=0.9..0.999",), 0.9, 0.999, True),
    ],
)
def test_ranges_that_are_known(spec, wanted, low, high, log):
    (r,) = space(spec, wanted)
    assert (r.low, r.high, r.log) == (pytest.approx(low, rel=0.06), pytest.approx(high, rel=0.06), log)


@pytest.mark.parametrize(
    ("spec", "wanted", "message"),
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
def test_what_cannot_be_searched_is_said(spec, wanted, message):
    with pytest.raises(steppe.InputError, match=message):
        space(spec, wanted)


@given(st.floats(1e-4, 1e20).map(lambda v: float(f"{v:.3g}")))
@settings(max_examples=50, deadline=None)
def test_a_setting_goes_into_its_own_part(value):
    for spec in ("sam", "sam:rho=0.3,ascents=2", "sam+gc", "gc+sam:norm=tensor", "sam:start=0.5+ema"):
        written = repr(methods.parse(spec_with(spec, {"rho": value})))
        (rho,) = re.findall(r"rho=([^,)]+)", written)
        assert float(rho) == value
        usual = repr(methods.parse(spec.replace("rho=0.3", "rho=0.05")))
        assert written.replace(f"rho={rho}", "rho=0.05") == usual


# -- the search ------------------------------------------------------------------------------------------------


def test_trials_are_ordinary_runs_and_the_best_is_the_best(found, images):
    out, result = found
    assert len(result.trials) == 3
    assert result.trials[0].values == {"rho": 0.05}  # the default comes first
    assert len({t.values["rho"] for t in result.trials}) == 3
    for tried in [*result.trials, result.baseline]:
        (digest,) = tried.runs
        run = replace(RUN, method=tried.method)
        assert digest == engine.digest(run)
        stamp = (out / "runs" / digest / "result.json").stat().st_mtime_ns
        held = engine.train_run(run, out / "runs" / digest, images)
        assert (out / "runs" / digest / "result.json").stat().st_mtime_ns == stamp
        assert tried.accuracies == [held["val"]["last"]["accuracy"]]
        assert all(r.low <= v <= r.high for r, v in zip(result.ranges, tried.values.values(), strict=False))
    assert result.best.accuracy == max(t.accuracy for t in result.trials)
    assert result.fresh == [1]
    for method, values in ((result.best.method, result.tuned_again), ("plain", result.plain_again)):
        for seed, value in zip(result.fresh, values, strict=True):
            held = engine.train_run(
                run := replace(RUN, method=method, seed=seed), out / "runs" / engine.digest(run), images
            )
            assert value == held["val"]["last"]["accuracy"]


def test_the_same_search_again_trains_nothing_and_a_larger_one_goes_on(found, images):
    out, result = found
    spoken = []
    again = search(RUN, space("sam"), SMALL, out, images, lambda run, news: spoken.append(news))
    assert again == result
    assert all(isinstance(news, str) for news in spoken)
    with pytest.raises(steppe.InputError, match="holds another search"):
        search(replace(RUN, epochs=3), space("sam"), SMALL, out, images)
    with pytest.raises(steppe.InputError, match="holds another search"):
        search(RUN, space("sam", ["rho=0.1..1"]), SMALL, out, images)


def test_a_killed_search_goes_on_to_the_same_answer(found, tmp_path, images):
    _, undisturbed = found
    out = tmp_path / "killed"
    command = [*(sys.executable, "-m", "steppe", "tune"), *FLAGS, "--trials", "3", "--confirm", "1"]
    command += ["--pruner", "none", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment())
    until = time.monotonic() + 120
    # plain and one trial have ended, the second is at work or about to begin
    while len(list(out.glob("runs/*/result.json"))) < 2 and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("runs/*/result.json"))) < 6
    assert search(RUN, space("sam"), SMALL, out, images) == undisturbed


def test_a_stop_in_the_middle_of_a_trial_changes_nothing(found, tmp_path, images):
    class StopError(Exception):
        pass

    def stop(run, news):
        if run.method == third and not isinstance(news, str) and news.val_accuracy is not None:
            raise StopError

    third = found[1].trials[2].method
    with pytest.raises(StopError):
        search(RUN, space("sam"), SMALL, tmp_path, images, stop)
    study = optuna.load_study(
        study_name="tune",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "tune.journal"))
        ),
    )
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert search(RUN, space("sam"), SMALL, tmp_path, images) == found[1]


def test_a_pruned_trial_keeps_its_run(tmp_path, images, monkeypatch):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    monkeypatch.setattr(optuna.pruners, "NopPruner", Second)
    result = search(RUN, space("sam"), replace(SMALL, trials=3, confirm=1, seeds=2), tmp_path, images)
    assert [t.state for t in result.trials] == ["complete", "pruned", "complete"]
    pruned = result.trials[1]
    assert result.best != pruned
    (digest,) = pruned.runs
    lines = (tmp_path / "runs" / digest / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1  # one epoch of the first seed, and none of the second
    assert pruned.accuracies == [json.loads(lines[0])["val_accuracy"]]
    assert engine.train_run(replace(RUN, method=pruned.method), tmp_path / "runs" / digest, images)["epochs"] == 2
    assert [len(t.accuracies) for t in (result.best, result.baseline)] == [2, 2]
    assert result.fresh == [2]
    drawn = curve(result).axes[0].get_legend()
    best = f"best, {result.best.values['rho']:g}"
    assert [entry.get_text() for entry in drawn.get_texts()] == ["plain", "sam", "pruned", best]


def test_two_searches_do_not_share_a_folder(tmp_path, images, monkeypatch):
    monkeypatch.setattr(sys.modules[search.__module__], "locked_run", partial(locked_run, patience=0.1))
    with locked_run(tmp_path), pytest.raises(steppe.RunError, match="another process is at work"):
        search(RUN, space("sam"), SMALL, tmp_path, images)


def test_the_time_given_ends_the_search(tmp_path, images):
    budget = replace(SMALL, trials=50, seconds=0.01, confirm=1)
    result = search(RUN, space("sam"), budget, tmp_path, images)
    assert len(result.trials) == 1
    assert result.best.values == {"rho": 0.05}


def test_trials_that_diverge_are_never_the_best(tmp_path, images):
    run = replace(RUN, optim=Optim(name="sgd", lr=0.05))
    ranges = [Range("rho", 0.05, 1e30, True, 0.05)]
    result = search(run, ranges, replace(SMALL, trials=3, confirm=1), tmp_path, images)
    assert "failed" in {t.state for t in result.trials}
    assert result.best.state == "complete"
    assert all(t.accuracy == 0 for t in result.trials if t.state == "failed")


# -- the answer ------------------------------------------------------------------------------------------------


def made(tuned: list[float], plain: list[float], best: float = 0.1) -> TuningResult:
    def tried(method: str, **values: float) -> Candidate:
        return Candidate(values, method, "complete", [0.5], 1.0, ["0"])

    one = tried(f"sam:rho={best}", rho=best)
    ranges = [Range("rho", 0.01, 1.0, True, 0.05)]
    return TuningResult(RUN, ranges, [one], tried("plain"), one, tuned, plain, list(range(len(tuned))))


def test_a_gain_is_claimed_only_beyond_the_noise_of_seeds():
    cases = {
        "beats plain": ([0.92, 0.94, 0.93], [0.90, 0.911, 0.905]),
        "No gain over plain can be told": ([0.92, 0.90, 0.93], [0.90, 0.92, 0.905]),
        "is worse than plain": ([0.80, 0.82, 0.81], [0.90, 0.911, 0.905]),
        "no interval from one seed": ([0.95], [0.90]),
    }
    for words, (tuned, plain) in cases.items():
        answer = made(tuned, plain)
        assert words in verdict(answer)[0]
        said = result_as_dict(answer)["confirmation"]
        pairs = [100 * (a - b) for a, b in zip(tuned, plain, strict=True)]
        assert said["points"]["mean"] == pytest.approx(fmean(pairs))
        assert said["beats_plain"] is (words == "beats plain")
        if len(pairs) > 1:
            half = student.ppf(0.975, len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs))
            assert said["points"]["low"] == pytest.approx(fmean(pairs) - half)


def test_the_end_of_a_range_is_said():
    assert len(verdict(made([0.9], [0.8]))) == 1
    for best in (0.011, 0.99):
        assert "at the end of its range 0.01..1" in verdict(made([0.9], [0.8], best))[1]
    # one in the middle that is as accurate has only lost by its loss
    found = made([0.9], [0.8], 0.99)
    tied = replace(found.best, values={"rho": 0.1}, loss=2.0)
    assert len(verdict(replace(found, trials=[*found.trials, tied]))) == 1


def test_the_command_answers_in_json_and_on_disk(found, capsys):
    out, result = found
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
    spoken = capsys.readouterr().out
    assert result.best.method in spoken and "baseline" in spoken
    assert main.main(["tune", "--method", "plain", "--out", str(out)]) == 2
    assert "has none of rho" in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("trials", 0), ("seeds", 0), ("confirm", 0), ("seconds", 0.0)])
def test_a_budget_that_is_none_is_refused(field, value):
    with pytest.raises(steppe.InputError, match=r"within is 0|is 0; give at least 1"):
        TuningBudget(**{field: value})


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


def _environment() -> dict[str, str]:
    here = str(Path(steppe.__file__).parents[1])
    return os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
