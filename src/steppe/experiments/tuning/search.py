"""The search: trials of a method's settings, each an ordinary run, judged on the validation split alone.

The sampler is TPE (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011), seeded anew for
each trial, so that a search that was killed goes on to the same values. What was tried is kept in a journal beside
the runs. Needs ``pip install 'steppe[tune]'``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from steppe import methods, records
from steppe.config import Run
from steppe.data.dataset import DataSet
from steppe.errors import InputError
from steppe.experiments.run_lock import locked_run
from steppe.experiments.tuning.space import Range, spec_with
from steppe.training import run as engine
from steppe.training.checkpoint.store import derive
from steppe.training.run import TrainingStatus
from steppe.training.trainer import METRICS

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import Trial, TrialState
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[tune]'") from None

JOURNAL, BASELINE = "tune.journal", "plain"
Pruner = Literal["median", "halving", "none"]
Listen = Callable[[Run, TrainingStatus | str], None]  # progress, or in words how a run ended
_RANDOM = 5  # trials before TPE and the pruner have something to go by


@dataclass(frozen=True)
class TuningBudget:
    """How much a search may do.

    Attributes:
        trials: Values tried.
        seconds: Time for the whole, baseline and confirmation included; None for as long as the trials take. One
            trial is made in any case.
        seeds: Runs of each trial, with as many seeds.
        confirm: Fresh seeds on which the best setting and the baseline are trained at the end.
        pruner: What ends unpromising trials early: 'median', 'halving' (successive halving) or 'none'.
    """

    trials: int = 20
    seconds: float | None = None
    seeds: int = 1
    confirm: int = 3
    pruner: Pruner = "median"

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("seeds", 1), ("confirm", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"within is {self.seconds}; give a number of seconds above 0")


@dataclass(frozen=True)
class Candidate:
    """One setting: its values, its state ('complete', 'pruned' or 'failed') and what its runs reached.

    ``accuracies`` are of the validation images after the last epoch, as fractions, in the order of the seeds; of a
    pruned trial, the last that was heard of.
    """

    values: dict[str, float]
    method: str
    state: str
    accuracies: list[float]
    loss: float | None
    runs: list[str]

    @property
    def accuracy(self) -> float:
        """Return the mean over seeds."""
        return fmean(self.accuracies) if self.accuracies else 0.0


@dataclass(frozen=True)
class TuningResult:
    """What a search found: every trial, the best, and best and baseline on fresh seeds, as (seed, accuracy)."""

    run: Run
    ranges: list[Range]
    trials: list[Candidate]
    baseline: Candidate
    best: Candidate
    tuned_again: list[float]
    plain_again: list[float]
    fresh: list[int]


class _Pruned(Exception):  # noqa: N818 - how a trial leaves the engine
    pass


def search(
    run: Run,
    ranges: Sequence[Range],
    budget: TuningBudget,
    out: Path,
    images: DataSet,
    listen: Listen = lambda _run, _news: None,
) -> TuningResult:
    """Try settings of ``run.method`` within the budget, going on where an earlier search in ``out`` was stopped.

    The first trial is the method's default. A trial whose loss ceases to be finite counts as accuracy 0.

    Raises:
        InputError: The folder holds another search, or a run cannot start.
        RunError: A file cannot be written, or another process is at work in ``out``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    engine.check(run, images)
    with locked_run(out):
        return _search(_study(run, ranges, budget, out), _Work(run, list(ranges), out, images, listen), budget)


def _search(study: optuna.Study, work: _Work, budget: TuningBudget) -> TuningResult:
    began, run = time.monotonic(), work.run
    seeds = [run.seed + i for i in range(budget.seeds)]
    fresh = [seeds[-1] + 1 + i for i in range(budget.confirm)]
    baseline = work.whole(BASELINE, seeds)
    longest = 0.0
    while (done := _finished(study)) < budget.trials:
        spent = time.monotonic() - began
        # what is left must hold one more trial, and the confirmation
        wanted = longest * (1 + 2 * budget.confirm / budget.seeds)
        if done and budget.seconds is not None and spent + wanted > budget.seconds:
            break
        _go_on_with(study)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM, seed=derive(run.seed, f"tune {done}") % 2**32
        )
        trial = study.ask()
        work.trial(study, trial, seeds)
        longest = max(longest, time.monotonic() - began - spent)
    trials = [Candidate(**t.user_attrs["tried"]) for t in study.get_trials(states=_OVER)]
    best = max((t for t in trials if t.state == "complete"), key=_rank, default=None)
    if best is None:
        raise InputError(f"no trial of {run.method} was completed; give other values, --settings NAME=LOW..HIGH")
    again = [work.whole(method, fresh).accuracies for method in (best.method, BASELINE)]
    return TuningResult(run, work.ranges, trials, baseline, best, again[0], again[1], fresh)


@dataclass(frozen=True)
class _Work:
    run: Run
    ranges: list[Range]
    out: Path
    images: DataSet
    listen: Listen

    def whole(self, method: str, seeds: Sequence[int], values: dict[str, float] | None = None) -> Candidate:
        """Train a method on all seeds."""
        runs = [replace(self.run, method=method, seed=seed) for seed in seeds]
        return self._tried(values or {}, runs, [self._fit(one, lambda: None) for one in runs])

    def trial(self, study: optuna.Study, trial: Trial, seeds: Sequence[int]) -> None:
        """Make one trial, and tell the study what it gave."""
        values = {r.name: _rounded(trial.suggest_float(r.name, r.low, r.high, log=r.log)) for r in self.ranges}
        method = spec_with(self.run.method, values)
        runs = [replace(self.run, method=method, seed=seed) for seed in seeds]
        heard: list[float] = []

        def report() -> None:
            # from the records, which also hold the epochs of a trial that was stopped
            lines = [records.read_epochs(self.folder(one) / METRICS) for one in runs]
            found = [line["val_accuracy"] or 0.0 for one in lines for line in one]
            for value in found[len(heard) :]:
                heard.append(value)
                trial.report(value, len(heard))
                if trial.should_prune():
                    raise _Pruned

        results = []
        try:
            for one in runs:
                results.append(self._fit(one, report))
        except _Pruned:
            begun = [engine.digest(one) for one in runs if self.folder(one).exists()]
            tried = Candidate(values, method, "pruned", heard[-1:], None, begun)
            trial.set_user_attr("tried", asdict(tried))
            study.tell(trial, state=TrialState.PRUNED)
            self.listen(runs[len(begun) - 1], f"pruned at validation accuracy {heard[-1]:.2%}")
            return
        tried = self._tried(values, runs, results)
        trial.set_user_attr("tried", asdict(tried))
        study.tell(trial, tried.accuracy)

    def folder(self, run: Run) -> Path:
        """Return where a run's records are."""
        return self.out / "runs" / engine.digest(run)

    def _fit(self, run: Run, report: Callable[[], None]) -> dict[str, Any]:
        def heard(news: TrainingStatus) -> None:
            self.listen(run, news)
            if news.val_accuracy is not None:
                report()

        folder = self.folder(run)
        report()
        with locked_run(folder):
            result = engine.train_run(run, folder, self.images, heard)
        report()
        self.listen(run, _ended(result))
        return result

    def _tried(self, values: dict[str, float], runs: Sequence[Run], results: list[dict[str, Any]]) -> Candidate:
        state = "complete" if all(r["status"] == "ok" for r in results) else "failed"
        last = [r["val"]["last"] for r in results if state == "complete"]
        return Candidate(
            values,
            runs[0].method,
            state,
            [v["accuracy"] for v in last] or [0.0] * len(runs),
            fmean(v["loss"] for v in last) if last else None,
            [engine.digest(one) for one in runs],
        )


_OVER = (TrialState.COMPLETE, TrialState.PRUNED)


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=_OVER))


def _study(run: Run, ranges: Sequence[Range], budget: TuningBudget, out: Path) -> optuna.Study:
    """Open the folder's search, or begin one with the default as its first trial."""
    pruner: optuna.pruners.BasePruner = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=_RANDOM, n_warmup_steps=run.epochs // 4),
        "halving": optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(1, run.epochs // 4), reduction_factor=2
        ),
        "none": optuna.pruners.NopPruner(),
    }[budget.pruner]
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    study = optuna.create_study(
        storage=storage, study_name="tune", direction="maximize", pruner=pruner, load_if_exists=True
    )
    resolved = run.as_dict() | {"method": repr(methods.parse(run.method))}
    asked = {
        "run": resolved,
        "ranges": [asdict(r) for r in ranges],
        "seeds": budget.seeds,
        "pruner": budget.pruner,
    }
    asked = json.loads(json.dumps(asked))
    held = study.user_attrs.get("asked")
    if held is None:
        study.set_user_attr("asked", asked)
        if all(r.default in r for r in ranges):
            study.enqueue_trial({r.name: r.default for r in ranges})
    elif held != asked:
        raise InputError(f"folder {out} holds another search; choose another with --out")
    return study


def _go_on_with(study: optuna.Study) -> None:
    """Queue the values of a trial that was stopped: its runs go on from their checkpoints."""
    for stopped in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stopped.number, state=TrialState.FAIL)
        if stopped.params:
            study.enqueue_trial(stopped.params)


def _ended(result: dict[str, Any]) -> str:
    if result["status"] != "ok":
        return f"failed: {result['message']}"
    return f"validation accuracy {result['val']['last']['accuracy']:.2%}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _rank(tried: Candidate) -> tuple[float, float]:
    """Order settings: by accuracy, ties by the lower loss."""
    return tried.accuracy, -(tried.loss if tried.loss is not None else float("inf"))
