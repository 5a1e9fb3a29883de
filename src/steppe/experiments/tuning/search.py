"""The search: trials of a method's settings, each an ordinary run, compared on the validation split alone.

The sampler is TPE (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011), seeded anew for
each trial, so that a killed search resumes with the same values. Trials are stored in Optuna's journal beside the
runs. Needs ``pip install 'steppe[tune]'``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from steppe import methods, records
from steppe.config import Run, TuningBudget
from steppe.core.method import Method
from steppe.data.dataset import DataSet
from steppe.errors import InputError
from steppe.experiments.run_lock import locked_run
from steppe.experiments.tuning.space import Range, with_values
from steppe.report.metric_text import MetricText
from steppe.tasks.metric import ACCURACY, Metric
from steppe.training.checkpoint.save_and_resume import derive
from steppe.training.evaluation import of_constant
from steppe.training.factories import make_objective
from steppe.training.run import TrainingStatus, check_augmentation, check_run, finished_result, train_run
from steppe.training.trainer import METRICS

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import Trial, TrialState
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[tune]'") from None

JOURNAL, BASELINE = "tune.journal", "plain"
TuningProgress = Callable[[Run, TrainingStatus | str], None]  # a run's status, or a sentence about its end
_RANDOM = 5  # random trials before TPE and the pruner start


@dataclass(frozen=True)
class Candidate:
    """One trial: its values, its state ('complete', 'pruned' or 'failed') and the results of its runs.

    ``accuracies`` are the recorded values of the metric (accuracy: fractions) on the validation data after the
    last epoch, in the order of the seeds; for a pruned trial, the last one before it was pruned.
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
    """Result of a search: every trial, the best one, and the values of best and baseline on fresh seeds."""

    run: Run
    ranges: list[Range]
    trials: list[Candidate]
    baseline: Candidate
    best: Candidate
    tuned_again: list[float]
    plain_again: list[float]
    fresh: list[int]
    metric: Metric = ACCURACY
    constant: float | None = None  # error on the validation samples of predicting the mean of the training targets


class _Pruned(Exception):  # noqa: N818 - ends a trial from within train_run
    pass


def search(
    run: Run,
    ranges: Sequence[Range],
    budget: TuningBudget,
    out: Path,
    images: DataSet | InputError,
    progress: TuningProgress = lambda _run, _news: None,
) -> TuningResult:
    """Search settings of ``run.method`` within the budget, resuming an earlier search in ``out``.

    The first trial is the method's default. A trial whose loss is no longer finite counts as accuracy 0, with
    another metric as infinitely bad. A finished search needs no ``images``: the error of loading them is raised
    when a run is to be trained.

    Raises:
        InputError: The folder holds another search, or a run cannot start.
        RunError: A file cannot be written, or another process is at work in ``out``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(images, DataSet):
        check_augmentation(run.data, {run.dataset: images})
        check_run(run, images)
    elif not (out / JOURNAL).exists():
        raise images
    with locked_run(out):
        study = _study(run, ranges, budget, out, images)
        metric = Metric.from_dict(study.user_attrs["settings"].get("metric"))
        return _search(study, _TrialRunner(run, list(ranges), out, images, progress, metric), budget)


def _search(study: optuna.Study, runner: _TrialRunner, budget: TuningBudget) -> TuningResult:
    started, run = time.monotonic(), runner.run
    seeds = [run.seed + i for i in range(budget.seeds)]
    fresh = [seeds[-1] + 1 + i for i in range(budget.confirm)]
    plain = methods.parse(BASELINE)
    baseline = runner.train(plain, seeds)
    longest = 0.0
    while (done := _finished(study)) < budget.trials:
        spent = time.monotonic() - started
        # the remaining time must suffice for one more trial and the confirmation
        needed = longest * (1 + 2 * budget.confirm / budget.seeds)
        if done and budget.seconds is not None and spent + needed > budget.seconds:
            break
        if isinstance(runner.images, InputError):
            raise runner.images
        _requeue_interrupted(study)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM, seed=derive(run.seed, f"tune {done}") % 2**32
        )
        trial = study.ask()
        runner.trial(study, trial, seeds)
        longest = max(longest, time.monotonic() - started - spent)
    trials = [Candidate(**t.user_attrs["candidate"]) for t in study.get_trials(states=_ENDED)]
    best = max((t for t in trials if t.state == "complete"), key=lambda t: _rank(t, runner.metric), default=None)
    if best is None:
        raise InputError(f"no trial of {run.label} was completed; give other values, --settings NAME=LOW..HIGH")
    again = [runner.train(method, fresh).accuracies for method in (runner.method(best.values), plain)]
    images = runner.images
    constant = None
    if not isinstance(images, InputError):
        constant = of_constant(make_objective(run, images), images, images.val)
    return TuningResult(
        run, runner.ranges, trials, baseline, best, again[0], again[1], fresh, runner.metric, constant
    )


@dataclass(frozen=True)
class _TrialRunner:
    run: Run
    ranges: list[Range]
    out: Path
    images: DataSet | InputError
    progress: TuningProgress
    metric: Metric
    methods: dict[tuple[tuple[str, float], ...], Method] = field(default_factory=dict)

    def method(self, values: Mapping[str, float]) -> Method:
        """Return the method with these settings, which its text shows."""
        key = tuple(values.items())
        if key not in self.methods:
            self.methods[key] = with_values(self.run.method, values)
            methods.spec_of(self.methods[key], explicit=values)
        return self.methods[key]

    def train(self, method: Method, seeds: Sequence[int]) -> Candidate:
        """Train a method on all seeds."""
        runs = [replace(self.run, method=method, seed=seed) for seed in seeds]
        return self._candidate({}, runs, [self._train(run, lambda: None) for run in runs])

    def trial(self, study: optuna.Study, trial: Trial, seeds: Sequence[int]) -> None:
        """Train one trial, and report it to the study."""
        values = {r.name: _rounded(trial.suggest_float(r.name, r.low, r.high, log=r.log)) for r in self.ranges}
        method = self.method(values)
        runs = [replace(self.run, method=method, seed=seed) for seed in seeds]
        accuracies: list[float] = []

        def report() -> None:
            # from the records, which also have the epochs of an interrupted trial
            lines = [line for run in runs for line in records.read_epochs(self.folder(run) / METRICS)]
            for line in lines[len(accuracies) :]:
                accuracies.append(self._value(line, "val"))
                trial.report(accuracies[-1], len(accuracies))
                if trial.should_prune():
                    raise _Pruned

        try:
            candidate = self._candidate(values, runs, [self._train(run, report) for run in runs])
        except _Pruned:
            started = [run for run in runs if self.folder(run).exists()]
            digests = [run.digest() for run in started]
            candidate = Candidate(values, methods.spec_of(method), "pruned", accuracies[-1:], None, digests)
            text = MetricText(self.metric)
            self.progress(started[-1], f"pruned at validation {text.name} {text.value(accuracies[-1])}")
        trial.set_user_attr("candidate", asdict(candidate))
        if candidate.state == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, candidate.accuracy)

    def _value(self, block: Mapping[str, Any], part: str = "") -> float:
        """Return the metric's value in a block of a record, the worst one if it is not finite."""
        value = block[MetricText(self.metric).key(part)]
        return self._worst if value is None or math.isnan(value) else float(value)

    @property
    def _worst(self) -> float:
        if self.metric == ACCURACY:
            return 0.0
        return -math.inf if self.metric.higher else math.inf

    def folder(self, run: Run) -> Path:
        """Return the folder of a run's records."""
        return self.out / "runs" / run.digest()

    def _train(self, run: Run, report: Callable[[], None]) -> dict[str, Any]:
        def progress(status: TrainingStatus) -> None:
            self.progress(run, status)
            if status.val_accuracy is not None:
                report()

        folder = self.folder(run)
        if isinstance(self.images, InputError):
            if (result := finished_result(run, folder)) is None:
                raise self.images
        else:
            report()
            with locked_run(folder):
                result = train_run(run, folder, self.images, progress)
            report()
        self.progress(run, _outcome(result, MetricText(self.metric)))
        return result

    def _candidate(self, values: dict[str, float], runs: list[Run], results: list[dict[str, Any]]) -> Candidate:
        state = "complete" if all(r["status"] == "ok" for r in results) else "failed"
        last = [r["val"]["last"] for r in results if state == "complete"]
        return Candidate(
            values,
            runs[0].label,
            state,
            [self._value(v) for v in last] or [self._worst] * len(runs),
            fmean(v["loss"] for v in last) if last else None,
            [run.digest() for run in runs],
        )


_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=_ENDED))


def _study(
    run: Run, ranges: Sequence[Range], budget: TuningBudget, out: Path, images: DataSet | InputError
) -> optuna.Study:
    """Load the folder's search, or create one with the default as its first trial."""
    pruner: optuna.pruners.BasePruner = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=_RANDOM, n_warmup_steps=run.epochs // 4),
        "halving": optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(1, run.epochs // 4), reduction_factor=2
        ),
        "none": optuna.pruners.NopPruner(),
    }[budget.pruner]
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    metric = ACCURACY if isinstance(images, InputError) else make_objective(run, images).metric
    direction: Literal["maximize", "minimize"] = "maximize" if metric.higher else "minimize"
    study = optuna.create_study(
        storage=storage, study_name="tune", direction=direction, pruner=pruner, load_if_exists=True
    )
    settings = {
        "run": run.as_dict() | {"method": run.method.to_dict()},
        "ranges": [asdict(r) for r in ranges],
        "seeds": budget.seeds,
        "pruner": budget.pruner,
    }
    stored = study.user_attrs.get("settings")
    images_of = (stored or {}).get("images") if isinstance(images, InputError) else images.fingerprint
    settings |= {"images": images_of} if images_of else {}
    if isinstance(images, InputError):
        settings |= {"metric": stored["metric"]} if stored and "metric" in stored else {}
    elif metric != ACCURACY:
        settings |= {"metric": metric.to_dict()}
    settings = json.loads(json.dumps(settings))
    if stored is None:
        study.set_user_attr("settings", settings)
        if all(r.default in r for r in ranges):
            study.enqueue_trial({r.name: r.default for r in ranges})
    elif stored != settings:
        raise InputError(f"folder {out} holds another search; choose another with --out")
    return study


def _requeue_interrupted(study: optuna.Study) -> None:
    """Enqueue the values of an interrupted trial again: its runs resume from their checkpoints."""
    for interrupted in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(interrupted.number, state=TrialState.FAIL)
        if interrupted.params:
            study.enqueue_trial(interrupted.params)


def _outcome(result: dict[str, Any], text: MetricText) -> str:
    if result["status"] != "ok":
        return f"failed: {result['message']}"
    return f"validation {text.name} {text.value(result['val']['last'][text.key()])}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _rank(candidate: Candidate, metric: Metric) -> tuple[float, float]:
    """Order trials: by the metric, ties by the lower loss."""
    loss = candidate.loss if candidate.loss is not None else math.inf
    return MetricText(metric).gain(candidate.accuracy), -loss
