"""The runs of a suite: tuning, choice of each row's setting, and the comparison in two views, task by task.

The folder of a suite has ``suite.json``, and for each task a folder with ``runs/``, ``tuning.json``, and a
comparison per view: ``compare.json`` at equal compute, so that other commands take a task's folder as that of a
comparison, and ``epochs.json`` at equal epochs. Runs are named by their digest, so that equal runs of tuning,
comparison and views are trained once, and a command that is started again trains only what is missing.
"""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from steppe import hardware, methods, records
from steppe.config import Run, Study
from steppe.config.run import DataKey, Match, RunOptions
from steppe.config.suites import Setting, Suite, SuiteRow, SuiteTask
from steppe.data.dataset import DataSet
from steppe.errors import InputError
from steppe.experiments.comparison import ComparisonPlan, check_saved, load_and_check, method_description
from steppe.experiments.run_lock import ComparisonRun
from steppe.records.suite import SUITE, TUNING, VIEWS
from steppe.report.metric_text import MetricText
from steppe.tasks.metric import Metric
from steppe.training.factories import make_objective
from steppe.training.run import RESULT

_MATCH: dict[str, Match] = {"compute": "gradients", "epochs": "epochs"}


@dataclass(frozen=True)
class TunedSetting:
    """A row's tuning on one task: the validation values by setting and seed, and the settings from the best down.

    A value is None if its run failed; a setting with such a run is not ranked. ``one_gradient``: the method
    computed one gradient per step, so that equal epochs are equal compute.
    """

    values: list[list[float | None]]
    ranking: list[int]
    one_gradient: bool

    @property
    def chosen(self) -> int | None:
        """Number of the best setting; None if every setting has a failed run."""
        return self.ranking[0] if self.ranking else None


@dataclass
class TaskRuns:
    """One task of a suite with the folder of its runs.

    ``rows`` are trained on the seeds ``final``; those of earlier commands are described too.
    """

    suite: Suite
    task: SuiteTask
    rows: Sequence[SuiteRow]
    final: Sequence[int]
    out: Path
    images: DataSet | None = None
    sets: dict[DataKey, DataSet] = field(default_factory=dict)
    _jobs: dict[tuple[Setting, int, Match], ComparisonRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = [row for row in self.rows if row.name not in self.task.without]

    def settings(self, row: SuiteRow) -> tuple[Setting, ...]:
        """Return a row's settings; until plain training is tuned, with the first of its factors."""
        plain = self.suite.plain
        tuned = self.choice(self._plain_row()) if row.combined else None
        return row.settings_with([plain[i] for i in tuned.ranking] if tuned and tuned.ranking else plain)

    def tuning(self, row: SuiteRow) -> list[list[ComparisonRun]]:
        """Return the tuning runs of a row by setting, at equal compute."""
        seeds = [row.seeds_from + seed for seed in self.suite.tune]
        return [[self._job(row, setting, seed, "gradients") for seed in seeds] for setting in self.settings(row)]

    def choice(self, row: SuiteRow) -> TunedSetting | None:
        """Return the choice among a row's settings, None while a tuning run of it or of what it needs is missing.

        The setting with the best mean over the tuning seeds of the validation metric after the last epoch is
        chosen, of equal ones the first; settings of which a run failed are not.
        """
        if row.combined and not self.choice(self._plain_row()):
            return None
        jobs = self.tuning(row)
        if not all(job.finished for setting in jobs for job in setting):
            return None
        results = [[records.read_result(job.folder / RESULT) or {} for job in setting] for setting in jobs]
        finished = [r for setting in results for r in setting if r.get("status") == "ok"]
        text = MetricText(Metric.from_dict(finished[0].get("metric")) if finished else Metric())
        values = [[_value(result, text) for result in setting] for setting in results]
        means = {
            i: text.gain(fmean(v for v in setting if v is not None))
            for i, setting in enumerate(values)
            if None not in setting
        }
        ranking = sorted(means, key=lambda i: -means[i])
        one_gradient = bool(finished) and all(r["passes"]["backward"] == 1 for r in finished)
        return TunedSetting(values, ranking, one_gradient)

    def comparison(self, row: SuiteRow, choice: TunedSetting, view: str) -> list[ComparisonRun]:
        """Return the runs of a row's chosen setting in a view, in the order of the seeds; none without one."""
        if choice.chosen is None:
            return []
        match = "gradients" if choice.one_gradient else _MATCH[view]
        setting = self.settings(row)[choice.chosen]
        return [self._job(row, setting, row.seeds_from + seed, match) for seed in self.final]

    def phases(self) -> list[tuple[str, Callable[[], list[ComparisonRun]]]]:
        """Return what is trained one after another, because each depends on the results before it."""
        later = [("comparison", self._all_comparisons)]
        if len({bool(row.combined) for row in self.rows}) > 1:
            later = [("tuning of the others", self._all_tuning), *later]
            own = [row for row in self.rows if not row.combined]
            later = [("tuning of plain training and of rows with factors", lambda: self._all_tuning(own)), *later]
        else:
            later = [("tuning", self._all_tuning), *later]
        return [("start", self._starts), *later] if self.task.start else later

    def _starts(self) -> list[ComparisonRun]:
        """Return the runs whose weights the others start with, one per seed."""
        if not self.task.start:
            return []
        seeds = [(row.seeds_from, seed) for row in self.rows for seed in (*self.suite.tune, *self.final)]
        return [self._start(first + seed, seed) for first, seed in dict.fromkeys(seeds)]

    def _start(self, seed: int, split: int) -> ComparisonRun:
        run = self.task.start_run(seed, split)
        return ComparisonRun(run, self.out / "runs" / run.digest(), f"{self.task.name}, start: plain seed {seed}")

    def _all_tuning(self, rows: Sequence[SuiteRow] = ()) -> list[ComparisonRun]:
        by_row = [[job for setting in self.tuning(row) for job in setting] for row in rows or self.rows]
        return list(dict.fromkeys(job for jobs in zip(*by_row, strict=True) for job in jobs))

    def _all_comparisons(self) -> list[ComparisonRun]:
        """Return the runs of both views; a seed of all rows after the other, so that differences come early."""
        jobs: list[ComparisonRun] = []
        for view in VIEWS:
            choices = [(row, choice) for row in self.rows if (choice := self.choice(row))]
            own = [self.comparison(row, choice, view) for row, choice in choices]
            jobs += [job for seed in zip(*filter(None, own), strict=True) for job in seed]
        return list(dict.fromkeys(jobs))

    def plan(self, jobs: list[ComparisonRun], retry: bool = False) -> ComparisonPlan:
        """Return the plan of these runs, after the check of what they have on disk."""
        if self.images is not None:
            for job in jobs:
                check_saved(job, self.images, retry)
        records.make_folder(self.out)
        return ComparisonPlan(self._study(), self.out, jobs, {}, {}, self.sets)

    def check(self, progress: Callable[[int, int], None] | None, retry: bool = False) -> None:
        """Load the task's data and check every setting of every row on them; nothing if all runs are finished."""
        if not self.left()[0] and not retry:
            return
        # the start is not trained yet
        sets = load_and_check([replace(job.run, init="") for job in self._all_tuning()], progress)
        self.images = next(iter(sets.values()))
        self.sets = sets | load_and_check([job.run for job in self._starts()[:1]], progress)

    def left(self) -> tuple[int, list[float]]:
        """Return the number of runs that are missing, at most, and the seconds of each finished one."""
        jobs, unknown = self._starts() + self._all_tuning() + self._all_comparisons(), 0
        for row in self.rows:
            unknown += 0 if self.choice(row) else len(VIEWS) * len(self.final)
        finished = [job for job in dict.fromkeys(jobs) if job.finished]
        seconds = [(records.read_result(job.folder / RESULT) or {}).get("seconds") or 0.0 for job in finished]
        return len(dict.fromkeys(jobs)) - len(finished) + unknown, seconds

    def write(self, command: str) -> None:
        """Write ``tuning.json`` and the comparisons of all rows that are tuned, those of earlier commands too."""
        choices = {row: choice for row in self._every_row() if (choice := self.choice(row))}
        if not choices:
            return
        settings = {
            row.name: {
                "settings": [setting.text for setting in self.settings(row)],
                "values": choice.values,
                "chosen": choice.chosen,
            }
            for row, choice in choices.items()
        }
        records.write_json(self.out / TUNING, {"seeds": list(self.suite.tune), "rows": settings})
        data = self.description()
        for view, file in VIEWS.items():
            runs = [
                {"digest": job.folder.name, "method": row.name, "model": job.run.model}
                | {"dataset": job.run.dataset, "seed": job.run.seed - row.seeds_from}
                for row, choice in choices.items()
                for job in self.comparison(row, choice, view)
            ]
            study = self._study().as_dict() | {"match": _MATCH[view]}
            content = {
                "format": records.FORMAT,
                "created": _now(),
                "command": command,
                "environment": hardware.environment(),
                "study": study,
                "data": data,
                "runs": runs,
                "methods": {row.name: self._row_description(row, choice) for row, choice in choices.items()},
            }
            records.write_json(self.out / file, content)

    def _row_description(self, row: SuiteRow, choice: TunedSetting) -> dict[str, Any]:
        setting = self.settings(row)[choice.chosen or 0]
        rows: dict[str, str] = {}
        for other in self._every_row():
            for text in (s.method for s in other.settings):
                rows.setdefault(text, other.name)
        among = [methods.parse(text) for text in rows]
        about = method_description(methods.parse(setting.method), among, self._plain().optim.decay_start)
        about["controls"] = [rows.get(name, name) for name in about["controls"]]
        factors = setting.text.removeprefix(setting.method)
        about |= {"resolved": about["resolved"] + factors}
        return about | ({"summary": row.about} if row.about else {})

    def _plain_row(self) -> SuiteRow:
        return next(row for row in self.suite.rows if row.name == "plain")

    def _every_row(self) -> list[SuiteRow]:
        return [row for row in self.suite.rows if row.name not in self.task.without]

    def failed(self) -> bool:
        """Return whether a run of the task has failed."""
        jobs = dict.fromkeys(self._starts() + self._all_tuning() + self._all_comparisons())
        results = (records.read_result(job.folder / RESULT) for job in jobs if job.finished)
        return any(result is not None and result["status"] != "ok" for result in results)

    def description(self) -> dict[str, Any]:
        """Return the description of the task's data, which a finished task has on disk."""
        if self.images is None:  # all runs are finished
            with contextlib.suppress(InputError):
                return (records.read_json_if_exists(self.out / VIEWS["compute"]) or {}).get("data") or {}
            return {}
        run = self._all_tuning()[0].run
        metric = make_objective(run, self.images).metric.to_dict()
        return {run.dataset: self.images.description() | {"metric": metric}}

    def _plain(self) -> Run:
        return self.task.run(Setting("plain"), 0, "gradients")

    def _study(self) -> Study:
        plain = self._plain()
        options: dict[str, Any] = {name: getattr(plain, name) for name in RunOptions.__dataclass_fields__}
        options |= {"models": (plain.model,), "datasets": (plain.dataset,), "seeds": tuple(self.final)}
        options |= {"resplit": self.task.resplit}
        return Study(methods=("plain",), **options)

    def _job(self, row: SuiteRow, setting: Setting, seed: int, match: Match) -> ComparisonRun:
        key = (setting, seed, match)
        if key not in self._jobs:
            split = seed - row.seeds_from
            init = str(self._start(seed, split).folder) if self.task.start else ""
            run = self.task.run(setting, seed, match, init, split)
            name = f"{self.task.name}, {row.name}: {setting.text} seed {seed}"
            name += "" if match == "gradients" else ", equal epochs"
            self._jobs[key] = ComparisonRun(run, self.out / "runs" / run.digest(), name)
        return self._jobs[key]


def write_suite(suite: Suite, missing: dict[str, str], out: Path, command: str) -> None:
    """Write ``suite.json``: the suite's rows and tasks, and why tasks are left out.

    A task that an earlier command trained stays in it.
    """
    content = {
        "format": records.FORMAT,
        "created": _now(),
        "command": command,
        "environment": hardware.environment(),
        "title": suite.title,
        "about": suite.about,
        "seeds": {"tune": list(suite.tune), "final": list(suite.final)},
        "resplit": all(task.resplit for task in suite.tasks),
        "tasks": {task.name: {"about": task.about} for task in suite.tasks},
        "rows": {
            row.name: {"control": row.control, "settings": [s.text for s in row.settings]} for row in suite.rows
        },
        "missing": {name: why for name, why in missing.items() if not (out / name / VIEWS["compute"]).exists()},
    }
    records.make_folder(out)
    records.write_json(out / SUITE, content)


def _value(result: dict[str, Any], text: MetricText) -> float | None:
    if result.get("status") != "ok":
        return None
    value: float | None = result["val"]["last"].get(text.key())
    return value


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
