"""``steppe.compare``: methods side by side on a network and data of the user's, as one call."""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe import experiments, records
from steppe.api import _arguments, _live
from steppe.api._arguments import Arguments
from steppe.api._text import rendered
from steppe.config import Monitoring, Study, from_dict, user_code
from steppe.errors import InputError, unknown
from steppe.experiments.comparison import run_here
from steppe.report.comparison import conclusions, deployables, page, summary, tables
from steppe.report.metric_text import MetricText
from steppe.report.statistics import paired_difference
from steppe.training.export import Which, export

METHODS = ("plain", "repeat-step", "sam", "ema")


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference ``a - b`` of two methods, paired by seed, with Student's 95 % interval.

    Attributes:
        a, b: The methods.
        mean: In the metric's unit; of shares in percentage points.
        low, high: The interval; None if there is none, as from one seed.
        n: Number of seeds.
        metric: Name of the metric.
        unit: Unit of the difference.
        higher: Whether larger values of the metric are better.
    """

    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    n: int
    metric: str
    unit: str
    higher: bool

    @property
    def better(self) -> str | None:
        """The better method if the interval excludes 0, else None."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return None
        return self.a if (self.mean > 0) == self.higher else self.b

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        bounds = "" if self.low is None else f", 95 % interval {self.low:+.3g} to {self.high:+.3g}"
        verdict = f"{self.better} is better" if self.better else "no significant difference"
        direction = "higher" if self.higher else "lower"
        return (
            f"{self.a} minus {self.b}: {self.mean:+.3g}{unit} of test {self.metric}{bounds}, {self.n} "
            f"{'seed' if self.n == 1 else 'seeds'} ({direction} is better): {verdict}"
        )


@dataclass(frozen=True, repr=False)
class ComparisonResult:
    """The result of `steppe.compare`; as text it is the table with its conclusions.

    Attributes:
        folder: Folder of the comparison, with the records of every run; ``steppe report`` and ``steppe diagnose``
            take it.
        errors: Message of each run that failed, by its name.
    """

    folder: Path
    errors: dict[str, str] = field(default_factory=dict)
    _objects: Mapping[tuple[str, str], Any] = field(default_factory=dict)  # what the user passed, for diagnose

    @functools.cached_property
    def _records(self) -> records.Comparison:
        return records.load(self.folder)

    @functools.cached_property
    def _rows(self) -> list[summary.ResultRow]:
        return summary.rows(self._records)

    def __str__(self) -> str:
        parts = [tables.terminal(self._rows), *deployables.terminal(deployables.parts(self._records))]
        texts = [conclusions.sentence(self._rows), *conclusions.remarks(self._rows)]
        failed = [f"{name}: {message}" for name, message in self.errors.items()]
        failed += [f"{r.method} seed {r.seed} failed: {r.message}" for r in self._records.records if r.message]
        return "\n\n".join([rendered(*parts), *texts, *failed])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _live.html(self._rows, [conclusions.sentence(self._rows), *conclusions.remarks(self._rows)])

    def values(self, method: str, *, dataset: str = "", model: str = "", part: str = "test") -> dict[int, float]:
        """Return the metric after the last epoch by seed; shares are in percent.

        ``part`` is 'test' or 'val'. ``dataset`` and ``model`` may be left out if there is one.

        Raises InputError for a method or part that is not in the comparison.
        """
        group = self._group(dataset, model)
        if method not in self._records.methods:
            raise unknown("method", method, self._records.methods)
        if part not in ("test", "val"):
            raise InputError(f"part is {part!r}; give 'test' or 'val'")
        text = self._text(group)
        values = {}
        for record in summary.runs_of(self._records, group, method):
            if record.status == "ok" and record.result is not None:
                value = summary.value_of(record.result[part]["last"], text)
                if value is not None:
                    values[record.seed] = value
        return values

    def difference(self, a: str, b: str, *, dataset: str = "", model: str = "") -> PairedDifference:
        """Return the test metric of method ``a`` minus that of ``b``, over the seeds that both finished.

        Raises InputError if a method is not in the comparison, or no seed has both.
        """
        group = self._group(dataset, model)
        first, second = (self.values(m, dataset=group[0], model=group[1]) for m in (a, b))
        seeds = [seed for seed in first if seed in second]
        if not seeds:
            raise InputError(f"no seed has finished both {a} and {b}; finish the comparison first")
        d = paired_difference([first[s] for s in seeds], [second[s] for s in seeds])
        text = self._text(group)
        return PairedDifference(a, b, d.mean, d.low, d.high, d.n, text.name, text.points, text.metric.higher)

    def best(self, *, by: str = "val", dataset: str = "", model: str = "") -> str:
        """Return the method with the best mean metric after the last epoch, on the validation samples.

        With ``by='test'`` it is chosen on the test samples, whose value for it is then optimistic.

        Raises InputError if no run has finished.
        """
        group = self._group(dataset, model)
        means: dict[str, float] = {}
        for method in self._records.methods:
            if values := self.values(method, dataset=group[0], model=group[1], part=by):
                means[method] = sum(values.values()) / len(values)
        if not means:
            raise InputError(f"no run of {self.folder} has finished; look at its errors")
        sign = 1 if self._text(group).metric.higher else -1
        return max(means, key=lambda method: sign * means[method])

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain data: per data set and network, the metric and a row for each method."""
        groups = []
        for group in summary.groups(self._records):
            text = self._text(group)
            rows = [row for row in self._rows if (row.dataset, row.model) == group]
            groups.append(
                {
                    "dataset": group[0],
                    "model": group[1],
                    "metric": text.metric.to_dict(),
                    "methods": {row.method: self._entry(row, group) for row in rows},
                }
            )
        return {"folder": str(self.folder), "groups": groups, "errors": dict(self.errors)}

    def _entry(self, row: summary.ResultRow, group: tuple[str, str]) -> dict[str, Any]:
        d = row.difference
        return {
            "mean": row.last.mean if row.last else None,
            "std": row.last.std if row.last else None,
            "seeds": row.ok - row.without_value,
            "failed": row.failed,
            "difference": None if d is None else d.mean,
            "low": None if d is None else d.low,
            "high": None if d is None else d.high,
            "seconds": row.seconds,
            "values": self.values(row.method, dataset=group[0], model=group[1]),
        }

    def to_frame(self) -> Any:
        """Return the table as a pandas DataFrame, a row for each method; raises InputError without pandas."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_frame needs pandas: pip install 'steppe[tables]'; or use to_dict") from None
        rows = [
            {"dataset": g["dataset"], "model": g["model"], "method": method, "metric": g["metric"]["name"]}
            | {k: v for k, v in entry.items() if k != "values"}
            for g in self.to_dict()["groups"]
            for method, entry in g["methods"].items()
        ]
        frame: Any = pandas.DataFrame(rows)
        constant = [k for k in ("dataset", "model") if frame[k].nunique() < 2]
        return frame.drop(columns=constant).set_index("method")

    def export(
        self, method: str, path: str | Path, *, seed: int | None = None, which: Which = "best",
        network: int | None = None, dataset: str = "", model: str = "",
    ) -> Path:  # fmt: skip
        """Write the deployed network of one run to the folder ``path``, as ``steppe export``, and return it.

        ``seed`` is the first that finished if not given; ``which`` is 'best' or 'last'; ``network`` one of the
        networks of a method that trains several.

        Raises InputError if there is no such run, or the network is code of another session: give it again, with
        ``steppe export --code``.
        """
        group = self._group(dataset, model)
        runs = [r for r in summary.runs_of(self._records, group, method) if r.status == "ok"]
        run = next((r for r in runs if seed in (None, r.seed)), None)
        if run is None:
            raise InputError(f"no run of {method} with seed {seed} has finished; finish the comparison first")
        with user_code.registered(dict(self._objects)):
            export(self.folder / "runs" / run.digest, Path(path), which=which, network=network)
        return Path(path)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page of the comparison, one HTML file, to its folder or to ``path``; return where it is."""
        written = page.write(self.folder)
        if path is None:
            return written
        target = Path(path)
        target = target / written.name if target.is_dir() else target
        records.make_folder(target.parent)
        shutil.copyfile(written, target)
        return target

    def _text(self, group: tuple[str, str]) -> MetricText:
        return summary.metric_of(self._records, group[0])

    def _group(self, dataset: str, model: str) -> tuple[str, str]:
        groups = summary.groups(self._records)
        matches = [g for g in groups if dataset in ("", g[0]) and model in ("", g[1])]
        if len(matches) != 1:
            names = "; ".join(", ".join(g) for g in groups)
            raise InputError(f"dataset {dataset!r} and model {model!r} name {len(matches)} of: {names}; name one")
        return matches[0]


def compare(
    new_model: Any,
    data: Any,
    methods: Any = METHODS,
    *,
    loss: Any = None,
    metric: Any = None,
    task: str = "",
    optimizer: Any = None,
    lr: float | None = None,
    optim: Mapping[str, Any] | None = None,
    seeds: int | Iterable[int] = 3,
    epochs: int | None = None,
    budget: int | str | None = None,
    batch: int | None = None,
    collate: Callable[[Sequence[Any]], Any] | None = None,
    split: Mapping[str, Any] | None = None,
    name: str = "",
    out: str | Path | None = None,
    jobs: int = 1,
    launcher: str = "local",
    retry: bool = False,
    progress: bool = True,
    **options: Any,
) -> ComparisonResult:
    """Train methods side by side, on equal data, initial weights and budgets, and return the result.

    Called again with the same ``out``, it trains what is not finished.

    Args:
        new_model: A function of a seed that returns a new network; or one without arguments, which is called with
            torch's generator seeded; or the name of a built-in network; or several, in a list or by their names.
        data: A pair of inputs and targets (arrays, tensors, data frames; inputs also in a mapping by the network's
            arguments), a torch ``Dataset`` or ``DataLoader``, a Hugging Face ``Dataset``, or a function that
            returns one; or (train, test), (train, val, test) or a mapping of these; or the name of a data set.
            Missing validation and test samples are split off.
        methods: Names with settings, methods, or classes of methods.
        loss: A name (cross-entropy, bce, mse, mae, huber, with :weight=balanced), a function of output and target
            that returns the mean, or 'model' if the network returns its own loss; the task's if not given.
        metric: A name, a torchmetrics object, a function of all outputs and targets; with its direction in a pair,
            (function, 'lower'); the task's if not given.
        task: The task, if the targets do not say it; see `steppe.config.Run`.
        optimizer: A name such as adamw or muon+adamw, a class, or a function of the parameters, or of the model,
            that returns one optimizer or several; AdamW if not given. A learning rate of its own is kept.
        lr: Learning rate; by default 0.001 of AdamW, Adam and muon+adamw, 0.01 of SGD, and of a class its own.
        optim: Other options of the optimizer and its schedule (`steppe.config.Optim`).
        seeds: How many seeds, or which.
        epochs: Passes over the training samples, 16 by default.
        budget: Instead of epochs: '60 seconds', or '20 gradients': as many gradients as plain training makes in 20
            epochs.
        batch: Samples of a batch; 32 by default, or that of a DataLoader.
        collate: Joins samples that are fetched by index to a batch, as a DataLoader's collate_fn.
        split: Options of the split (`steppe.config.Data`), such as {'val': 0.2}.
        name: Name of the data in tables.
        out: Folder of the records; a temporary one, removed with the result, if not given.
        jobs: Runs at a time. With 1 they train in this process, one after another; with more in worker processes,
            to which functions of a notebook are sent too.
        launcher: Where runs train: 'local', 'ray' or 'slurm' with settings, as ``steppe compare --launcher``.
        retry: Train failed runs again.
        progress: Show a live table in a notebook, and a line in a terminal.
        options: Other fields of `steppe.config.Study`, such as precision or m.

    Raises:
        InputError: An argument is not usable, or network, data, loss, metric and methods do not fit together.
            Nothing has been trained then.
    """
    arguments = Arguments()
    values: dict[str, Any] = {
        "methods": arguments.methods(methods),
        "models": arguments.models(new_model),
        "datasets": (arguments.dataset(data, name, task, collate),),
        "loss": "" if loss is None else arguments.name("loss", loss),
        "metric": arguments.metric(metric),
        "task": task,
        "optim": _arguments.optim_of(arguments, optimizer, lr, optim),
        "data": _arguments.data_of(split, isinstance(data, str)),
        "seeds": _arguments.seeds_of(seeds),
        **_arguments.budget_of(budget, epochs),
        **_arguments.batch_of(data, batch),
        **options,
    }
    for key in options:
        if key not in Study.__dataclass_fields__:
            raise unknown("option", key, Study.__dataclass_fields__)
    folder = Path(tempfile.mkdtemp(prefix="steppe-") if out is None else out)
    if isinstance(values.get("watch"), Mapping):
        values["watch"] = from_dict(Monitoring, values["watch"])
    if jobs < 0:
        raise InputError(f"jobs is {jobs}; give 0 (as many as fit) or more")
    with user_code.registered(arguments.objects):
        study = Study(**values)
        cluster = experiments.Launcher.parse(launcher).cluster(folder)
        grid = experiments.prepare(study, folder, f"steppe.compare(..., out={str(folder)!r})", retry=retry)
        with _live.Live(grid.out, len(grid.open), progress) as live:
            if jobs == 1 and cluster is None:
                errors = run_here(grid, live.update)
            else:
                errors = experiments.run(grid, jobs or _cores(study), live.update, cluster)
    messages = {job.name: text for job, text in errors.items()}
    result = ComparisonResult(folder, messages, arguments.objects)
    if out is None:
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def _cores(study: Study) -> int:
    from steppe import hardware

    return 1 if hardware.device().type == "cuda" else max(1, hardware.cores() // study.threads)
