"""A recipe read from its YAML file, and the run that it gives for a row, data and a model."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from steppe.config import Run, from_dict, parse_spec
from steppe.config.method_spec import format_spec
from steppe.errors import InputError, unknown


@dataclass(frozen=True)
class Case:
    """Settings and methods that hold only for some rows, data and models; an empty kind means all of it.

    ``rows`` are rows of the table or names of methods. ``methods`` replaces the method of rows in this case.
    """

    source: str
    rows: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def holds(self, data: str, model: str) -> bool:
        """Return whether the case covers this data and model."""
        return (not self.data or data in self.data) and (not self.models or model in self.models)


@dataclass(frozen=True)
class Published:
    """A printed table: the quantity, the columns and the rows, with None for an empty cell."""

    quantity: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class Choice:
    """A recipe's values for one run, with its row in the table (None if it has none) and its kind of data.

    ``values`` are fields of `steppe.config.Run`, nested ones with a dot.
    """

    row: str | None
    data: str
    values: Mapping[str, Any]

    def run(self) -> Run:
        """Return the run; raises InputError for impossible values."""
        values: dict[str, Any] = {}
        for key, value in self.values.items():
            part, _, field = key.rpartition(".")
            (values.setdefault(part, {}) if part else values)[field] = value
        run: Run = from_dict(Run, values)
        return run


@dataclass(frozen=True)
class Recipe:
    """One table of a paper; the fields are those of its file (see `steppe.config.recipes`)."""

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

    def choose(self, variant: Sequence[str], overrides: Mapping[str, Any]) -> Choice:
        """Return the values of one run; ``overrides`` replace those of the recipe.

        Args:
            variant: Names of the recipe's data, models or rows, in any order; the first of each by default.
            overrides: Fields of `Run`, nested ones with a dot. ``method`` is a row or a method. A method with a
                single row in the recipe takes that row's settings, except those that it states itself.

        Raises:
            InputError: A name in ``variant`` is unknown, or the recipe's data need a path.
        """
        data, model, row = (self._named(variant, kind) for kind in (self.data, self.models, self.methods))
        if self.files and "dataset" not in overrides:
            raise InputError(f"recipe {self.name} has no dataset; give --dataset {data}:PATH, {self.files}")
        dataset, model = str(overrides.get("dataset", data)), str(overrides.get("model", model))
        kind = dataset.partition(":")[0]
        data = kind if kind in self.data else data
        matched, spec = _match_row(self.table(data, model), str(overrides.get("method", row)))
        values = dict(self.settings)
        for case in self.where:
            if case.holds(data, model) and (not case.rows or {matched, _name(spec)} & {*case.rows}):
                values |= case.settings
        return Choice(matched, data, {**values, **overrides, "method": spec, "model": model, "dataset": dataset})

    def _named(self, variant: Sequence[str], kind: Collection[str]) -> str:
        """Return the member of ``kind`` that ``variant`` names, with or without its package, else the first."""
        full = {_short(name): name for part in (self.data, self.models, self.methods) for name in part}
        full |= {name: name for name in full.values()}
        for name in variant:
            if name not in full:
                raise unknown(f"variant of recipe {self.name}", name, full)
        return next((full[name] for name in variant if full[name] in kind), next(iter(kind)))


def _short(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[0]


def _name(spec: str) -> str:
    return spec.split("+")[0].partition(":")[0]


def _match_row(table: Mapping[str, str], method: str) -> tuple[str | None, str]:
    """Return the row that ``method`` names and its full spec; the row is None if none or several match."""
    if method in table:
        return method, table[method]
    rows = [row for row, spec in table.items() if _name(spec) == _name(method)]
    if len(rows) != 1 or "+" in method:
        return None, method
    name, own = parse_spec(method)
    settings = parse_spec(table[rows[0]])[1] | own
    return rows[0], format_spec(name, settings)


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
        raise unknown("recipe", name, names(), "steppe list recipes")
    fields: dict[str, Any] = yaml.safe_load(_files()[name].read_text("utf-8"))
    like = fields.pop("like", None)
    base = load(like) if like else None
    printed = _tuples(fields.pop("published"))
    rows = tuple(tuple(row) for row in printed.pop("rows", ()))
    where = [Case(**_tuples(case)) for case in fields.pop("where", [])]
    fields["published"] = Published(**printed, rows=rows)
    fields["where"] = (*_inherited_cases(base, fields), *where)
    fields["differs"] = (*(base.differs if base else ()), *fields.pop("differs", []))
    for part in ("settings", "sources"):
        fields[part] = {**(getattr(base, part) if base else {}), **fields.pop(part, {})}
    return Recipe(name=name, **_tuples(fields))


def _inherited_cases(base: Recipe | None, fields: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the cases of the base recipe that concern rows, data or models of this one."""
    names = {*fields["methods"], *map(_name, fields["methods"].values())}
    for case in base.where if base else ():
        rows = tuple(row for row in case.rows if row in names)
        methods = {row: spec for row, spec in case.methods.items() if row in names}
        kinds = ((case.data, fields["data"]), (case.models, fields["models"]), (case.rows, rows))
        concerns = all(not required or {*required} & {*present} for required, present in kinds)
        if concerns and (methods or case.settings):
            yield dataclasses.replace(case, rows=rows, methods=methods)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
