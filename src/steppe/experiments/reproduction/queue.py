"""The queue of the papers' printed accuracies: which of them can run with the data at hand.

A table is one network on one data set of a recipe. Its folder is that of a comparison whose methods are the rows.
"""

import datetime
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from steppe import data, hardware, records
from steppe.config import Data, Run, Study, recipes
from steppe.config.recipes import Recipe
from steppe.config.run import RunOptions
from steppe.data.dataset import DataSet
from steppe.errors import InputError, unknown
from steppe.experiments.comparison import (
    COMPARISON,
    ComparisonPlan,
    check_saved,
    describe_images,
    load_and_check,
    method_description,
)
from steppe.experiments.recipe_scaling import scaled_run
from steppe.experiments.run_lock import ComparisonRun
from steppe.training.run import RESULT, load_data

# tables that come first: recipe, kind of data and network, where an empty text stands for all
FIRST = (
    ("sadt-table1-512", "", ""),
    ("rwp-table1", "cifar10", ""),
    ("okdph-table3", "", "resnet32-okdph"),
)
_CLASSES = {10: "cifar10", 100: "cifar100", 1000: "folder"}
_PRINTED = {"accuracy", "top-1"}


@dataclass(frozen=True)
class Queue:
    """The tables that can run, in their order, and why others cannot."""

    tables: list["PaperTable"]
    missing: dict[str, str]


@dataclass
class PaperTable:
    """One network on one data set of a recipe, with the folder of its runs.

    Attributes:
        recipe, data, model: The recipe, the kind of data and the network.
        rows: The run of each row with seed 0; first plain training and the controls, rows without a printed value.
        printed: The rows with a printed accuracy.
        seeds, out, protocol: The seeds; the folder; 'full', or how the runs differ from the recipe's.
    """

    recipe: Recipe
    data: str
    model: str
    rows: Mapping[str, Run]
    printed: Sequence[str]
    seeds: Sequence[int]
    out: Path
    protocol: str
    images: DataSet | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the table and of its folder."""
        model = self.model.replace("/", "-").replace(":", "-")
        return f"{self.recipe.name}-{self.data}-{model}"

    @property
    def controls(self) -> list[str]:
        """The rows for which the paper prints no accuracy, plain excepted."""
        return [row for row in self.rows if row not in self.printed and row != "plain"]

    @cached_property
    def jobs(self) -> list[ComparisonRun]:
        """The runs, one seed after the other."""
        return [self._job(row, seed) for seed in self.seeds for row in self.rows]

    def _job(self, row: str, seed: int) -> ComparisonRun:
        run = replace(self.rows[row], seed=seed)
        return ComparisonRun(run, self.out / "runs" / run.digest(), f"{self.name}, {row} seed {seed}")

    @property
    def open(self) -> list[ComparisonRun]:
        """The runs that are not finished."""
        return [job for job in self.jobs if not job.finished]

    @property
    def answers(self) -> int:
        """The number of printed accuracies of which a run is not finished."""
        return sum(not all(self._job(row, seed).finished for seed in self.seeds) for row in self.printed)

    @property
    def rank(self) -> int:
        """The place in `FIRST`, of all others after it."""
        own = (self.recipe.name, self.data, self.model)
        matches = (all(b in ("", a) for a, b in zip(own, first, strict=True)) for first in FIRST)
        return next((i for i, matched in enumerate(matches) if matched), len(FIRST))

    def check(self, progress: Callable[[int, int], None] | None = None, retry: bool = False) -> ComparisonPlan:
        """Load the data, check every row on them and what is on disk; return the plan of the runs.

        Raises InputError for what is not usable, as a checkpoint or a package that is missing.
        """
        sets = load_and_check(list(self.rows.values()), progress)
        self.images = next(iter(sets.values()))
        for job in self.jobs:
            check_saved(job, self.images, retry)
        return ComparisonPlan(self._study(), self.out, self.jobs, {}, {}, sets)

    def write(self, command: str) -> None:
        """Write ``compare.json``, with which the folder is that of a comparison; nothing if no run has begun."""
        if not any(job.folder.exists() for job in self.jobs):
            return
        first = next(iter(self.rows.values()))
        images = self.images or load_data(first)
        content = {
            "format": records.FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "environment": hardware.environment(),
            "study": self._study().as_dict(),
            "data": {first.dataset: describe_images(first, images)},
            "runs": [
                {"digest": self._job(row, seed).folder.name, "method": row, "model": self.model}
                | {"dataset": first.dataset, "seed": seed}
                for seed in self.seeds
                for row in self.rows
            ],
            "methods": {row: self._about(run) for row, run in self.rows.items()},
            "table": {"recipe": self.recipe.name, "data": self.data, "model": self.model}
            | {"protocol": self.protocol, "control": next(iter(self.controls), None)},
        }
        records.write_json(self.out / COMPARISON, content)

    def _about(self, run: Run) -> dict[str, Any]:
        """Return the description of a row's method, its controls by their rows."""
        rows = {other.label: row for row, other in self.rows.items()}
        among = [other.method for other in self.rows.values()]
        about = method_description(run.method, among, run.optim.decay_start)
        return about | {"controls": [rows.get(name, name) for name in about["controls"]]}

    def failed(self) -> bool:
        """Return whether the training of a run failed."""
        results = (records.read_result(job.folder / RESULT) for job in self.jobs if job.finished)
        return any(result is not None and result["status"] != "ok" for result in results)

    def _study(self) -> Study:
        first = next(iter(self.rows.values()))
        options: dict[str, Any] = {name: getattr(first, name) for name in RunOptions.__dataclass_fields__}
        methods = tuple(dict.fromkeys(run.label for run in self.rows.values()))
        options |= {"models": (self.model,), "datasets": (first.dataset,), "seeds": tuple(self.seeds)}
        return Study(methods=methods, **options)


def queue(
    datasets: Sequence[str],
    out: Path,
    *,
    tables: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    scale: float = 1.0,
    changes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Queue:
    """Return the tables whose data are at hand, in the order of the recipes' names.

    Args:
        datasets: Data sets with their paths. A folder of images stands for CIFAR-10, CIFAR-100 or ImageNet by its
            number of classes.
        out: The folder under which each table has its own.
        tables: Names of recipes, of which colons may choose data, networks and rows; all if empty.
        seeds: Seeds of every row.
        scale: Share of the recipes' computation, as in `scaled_run`.
        changes: Fields of `Run` that replace the recipes', as its precision.
        progress: As in `steppe.data.load`.

    Raises InputError for an unknown name, or data that no table has.
    """
    paths = {_kind(dataset, progress): dataset for dataset in datasets}
    result, missing = [], dict[str, str]()
    for recipe, names in _chosen(tables):
        for kind, model in _columns(recipe, names):
            label = f"{recipe.name}:{kind}:{model}"
            package = model.partition("/")[0] if "/" in model else ""
            if kind not in paths:
                missing[label] = f"give --datasets {kind}:PATH"
            elif package and importlib.util.find_spec(package) is None:
                missing[label] = "pip install 'steppe[vision]'"
            else:
                fixed = dict(changes or {}) | {"dataset": paths[kind], "model": model}
                try:
                    result.append(_table(recipe, kind, model, names, fixed, scale, tuple(seeds), out))
                except InputError as error:  # as too few images for this table at a small scale
                    missing[label] = str(error)
    columns = [table.name for table in result]
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(
            f"tables names {twice[0]} twice; join its rows with colons, as sadt-table1-512:sam:sadt-v1"
        )
    if not result:
        reasons = ", or ".join(dict.fromkeys(missing.values())) or "name rows with a printed accuracy"
        raise InputError(f"no table can run with these data; {reasons}")
    return Queue(result, missing)


def _table(
    recipe: Recipe,
    kind: str,
    model: str,
    names: Sequence[str],
    fixed: dict[str, Any],
    scale: float,
    seeds: tuple[int, ...],
    out: Path,
) -> PaperTable:
    printed = [r[2] for r in recipe.published.rows if r[:2] == (kind, model)]
    ever = {r[2] for r in recipe.published.rows}
    controls = [row for row in recipe.methods if row not in ever]
    chosen = [row for row in recipe.methods if row in names]
    rows = dict.fromkeys([*(["plain"] if "plain" in printed else []), *controls, *printed])
    rows = {row: None for row in rows if not chosen or row in chosen}
    runs = {
        row: scaled_run(f"{recipe.name}:{kind}:{model}:{row}", scale, fixed | {"method": row})[0] for row in rows
    }
    some = next(iter(runs.values()))
    parts = ["full" if scale == 1 else f"scale {scale:g}"]
    parts += [f"{some.precision}"] if some.precision != "fp32" else []
    parts += ["images of a folder"] if some.dataset.startswith("folder:") and kind != "folder" else []
    table = PaperTable(recipe, kind, model, runs, [r for r in printed if r in rows], seeds, out, ", ".join(parts))
    table.out = out / table.name
    return table


def _kind(dataset: str, progress: Callable[[int, int], None] | None) -> str:
    """Return the kind of data that the recipes name, of a folder by its number of classes."""
    kind = dataset.partition(":")[0]
    if kind in ("cifar10", "cifar100"):
        return kind
    if kind != "folder":
        raise InputError(f"datasets is {dataset!r}, which no table has; give cifar10, cifar100 or folder:PATH")
    try:  # decoded as the recipes do, whose images are then cached
        images = data.load(dataset, Data(), progress=progress)
    except InputError:
        images = data.load(dataset, Data(size=224), progress=progress)
    classes = len(images.classes)
    if classes not in _CLASSES:
        raise InputError(f"datasets is {dataset!r} with {classes} classes; the tables have 10, 100 or 1000")
    return _CLASSES[classes]


def _chosen(tables: Sequence[str]) -> Iterator[tuple[Recipe, list[str]]]:
    """Yield the recipes with printed accuracies, each with the names that choose among its parts."""
    every = [recipe for recipe in map(recipes.load, recipes.names()) if _PRINTED & {*recipe.published.columns}]
    for text in tables or [recipe.name for recipe in every]:
        name, *names = text.split(":")
        if name not in [recipe.name for recipe in every]:
            raise unknown("table", name, [recipe.name for recipe in every], "steppe list recipes")
        recipe = recipes.load(name)
        for part in names:
            parts = (*recipe.data, *recipe.models, *recipe.methods)
            if part not in parts:
                raise unknown(f"part of table {name}", part, parts)
        yield recipe, names


def _columns(recipe: Recipe, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the data and networks for which values are printed, those among ``names`` if any is."""
    pairs = dict.fromkeys((r[0], r[1]) for r in recipe.published.rows)
    for i, kind in enumerate((recipe.data, recipe.models)):
        if chosen := {*kind} & {*names}:
            pairs = {pair: None for pair in pairs if pair[i] in chosen}
    return list(pairs)
