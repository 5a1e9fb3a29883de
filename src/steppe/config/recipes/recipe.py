"""A recipe as read from its file, and what it says about one run."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from steppe.config import Data, Monitoring, Optim, Run, parse_spec
from steppe.errors import InputError, unknown


@dataclass(frozen=True)
class Case:
    """Settings and methods that hold only for some rows, data and models; all of a kind that is not named.

    ``rows`` are rows of the table or names of methods, ``methods`` rows that mean another method in this case.
    """

    source: str
    rows: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def holds(self, data: str, model: str) -> bool:
        """Return whether this is such data and such a model."""
        return (not self.data or data in self.data) and (not self.models or model in self.models)


@dataclass(frozen=True)
class Published:
    """A printed table: what its numbers are, and its rows under its columns, None where a cell is empty."""

    quantity: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class Choice:
    """What a recipe says about one run: its row in the table, None if it has none, its kind of data, and values.

    ``values`` are fields of `steppe.config.Run`, nested ones with a dot.
    """

    row: str | None
    data: str
    values: Mapping[str, Any]

    def run(self) -> Run:
        """Return the run; raises InputError for impossible values."""
        parts: dict[str, dict[str, Any]] = {"": {}, "data": {}, "optim": {}, "watch": {}}
        for key, value in self.values.items():
            part, _, field = key.rpartition(".")
            parts[part][field] = tuple(value) if isinstance(value, list) else value
        data, optim, watch = Data(**parts["data"]), Optim(**parts["optim"]), Monitoring(**parts["watch"])
        return Run(data=data, optim=optim, watch=watch, **parts[""])


@dataclass(frozen=True)
class Recipe:
    """One table of a paper, as its file has it (see `steppe.config.recipes`)."""

    name: str
    title: str
    source: str
    data: tuple[str, ...]
    models: tuple[str, ...]
    methods: Mapping[str, str]
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    published: Published
    where: tuple[Case, ...] = ()
    differs: tuple[str, ...] = ()
    files: str = ""

    def table(self, data: str, model: str) -> dict[str, str]:
        """Return the method of each row for this data and model."""
        methods = dict(self.methods)
        for case in self.where:
            if case.holds(data, model):
                methods |= {row: spec for row, spec in case.methods.items() if row in methods}
        return methods

    def choose(self, variant: Sequence[str], given: Mapping[str, Any]) -> Choice:
        """Return the run of these words and values; a given value wins over the recipe.

        Args:
            variant: Names of the recipe's data, models or rows, in any order; the first of each if not named.
            given: Fields of `Run`, nested ones with a dot. ``method`` may be a row, or a method: one that the
                recipe has a single row of takes that row's settings where it does not state its own.

        Raises:
            InputError: A word is unknown, or the recipe's data need a path.
        """
        data, model, row = (self._named(variant, kind) for kind in (self.data, self.models, self.methods))
        if self.files and "dataset" not in given:
            raise InputError(f"recipe {self.name} has no dataset; give --dataset {data}:PATH, {self.files}")
        dataset, model = str(given.get("dataset", data)), str(given.get("model", model))
        kind = dataset.partition(":")[0]
        data = kind if kind in self.data else data
        meant, spec = _row_of(self.table(data, model), str(given.get("method", row)))
        values = dict(self.settings)
        for case in self.where:
            if case.holds(data, model) and (not case.rows or {meant, _name(spec)} & {*case.rows}):
                values |= case.settings
        return Choice(meant, data, {**values, **given, "method": spec, "model": model, "dataset": dataset})

    def _named(self, variant: Sequence[str], kind: Collection[str]) -> str:
        """Return the one of a kind that the words name, in full or without the package, else the first."""
        full = {_short(name): name for part in (self.data, self.models, self.methods) for name in part}
        full |= {name: name for name in full.values()}
        for word in variant:
            if word not in full:
                raise unknown(f"variant of recipe {self.name}", word, full)
        return next((full[word] for word in variant if full[word] in kind), next(iter(kind)))


def _short(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[0]


def _name(spec: str) -> str:
    return spec.split("+")[0].partition(":")[0]


def _row_of(table: Mapping[str, str], wanted: str) -> tuple[str | None, str]:
    """Return the row that a text means and the method in full; no row if it means none or several."""
    if wanted in table:
        return wanted, table[wanted]
    rows = [row for row, spec in table.items() if _name(spec) == _name(wanted)]
    if len(rows) != 1 or "+" in wanted:
        return None, wanted
    name, own = parse_spec(wanted)
    settings = parse_spec(table[rows[0]])[1] | own
    texts = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]
    return rows[0], f"{name}:{','.join(texts)}" if texts else name


def names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(_files())


def _files() -> dict[str, Traversable]:
    """Return the files of the recipes by name; each paper has a folder of its own."""
    papers = [folder for folder in resources.files("steppe.config.recipes").iterdir() if folder.is_dir()]
    files = [file for folder in papers for file in folder.iterdir()]
    return {f.name.removesuffix(".yaml"): f for f in files if f.name.endswith(".yaml")}


@functools.cache
def load(name: str) -> Recipe:
    """Return the recipe ``name``; raises InputError for an unknown one, with the nearest known ones."""
    if name not in names():
        raise unknown("recipe", name, names(), "(steppe list recipes)")
    held: dict[str, Any] = yaml.safe_load(_files()[name].read_text("utf-8"))
    like = held.pop("like", None)
    base = load(like) if like else None
    printed = _tuples(held.pop("published"))
    rows = tuple(tuple(row) for row in printed.pop("rows", ()))
    where = [Case(**_tuples(case)) for case in held.pop("where", [])]
    held["published"] = Published(**printed, rows=rows)
    held["where"] = (*_fitting(base, held), *where)
    held["differs"] = (*(base.differs if base else ()), *held.pop("differs", []))
    for part in ("settings", "sources"):
        held[part] = {**(getattr(base, part) if base else {}), **held.pop(part, {})}
    return Recipe(name=name, **_tuples(held))


def _fitting(base: Recipe | None, held: Mapping[str, Any]) -> Iterator[Case]:
    """Yield what holds for some rows, data or models of another recipe and concerns this one."""
    known = {*held["methods"], *map(_name, held["methods"].values())}
    for case in base.where if base else ():
        rows = tuple(row for row in case.rows if row in known)
        spoken = {row: spec for row, spec in case.methods.items() if row in known}
        about = all(
            not named or {*named} & {*here}
            for named, here in ((case.data, held["data"]), (case.models, held["models"]), (case.rows, rows))
        )
        if about and (spoken or case.settings):
            yield dataclasses.replace(case, rows=rows, methods=spoken)


def _tuples(held: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}
