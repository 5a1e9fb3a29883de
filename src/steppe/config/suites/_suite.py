"""A suite read from its YAML file, and the run of a task, a row and a setting."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from steppe.config.fields import from_dict
from steppe.config.run import Match, Run
from steppe.errors import InputError, unknown

_FOLDER = re.compile(r"[A-Za-z0-9][\w-]*")
_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Setting:
    """A method and factors on the task's learning rate, weight decay and epochs."""

    method: str
    lr: float = 1.0
    weight_decay: float = 1.0
    epochs: float = 1.0

    @property
    def text(self) -> str:
        """Return the method and the factors that are not 1: ``sam:rho=0.1, lr x 3``."""
        names = {"lr": "lr", "weight_decay": "weight decay", "epochs": "epochs"}
        values = {k: getattr(self, k) for k in names}
        factors = [f"{names[k]} \N{MULTIPLICATION SIGN} {v:g}" for k, v in values.items() if v != 1]
        return ", ".join([self.method, *factors])


@dataclass(frozen=True)
class SuiteRow:
    """A row of the league table: a method or a control, and the settings among which it is tuned.

    With ``combined`` above 0 each setting is tried with so many of the best factors of plain training.
    """

    name: str
    settings: tuple[Setting, ...]
    control: bool = False
    about: str = ""
    seeds_from: int = 0
    combined: int = 0

    def settings_with(self, factors: Sequence[Setting]) -> tuple[Setting, ...]:
        """Return the settings, combined with the factors of plain training, of which the best is the first."""
        if not self.combined:
            return self.settings
        return tuple(
            dataclasses.replace(one, method=own.method)
            for own in self.settings
            for one in factors[: self.combined]
        )


@dataclass(frozen=True)
class SuiteTask:
    """Data, network and training of one task; ``values`` are fields of `Run`, nested ones with a dot.

    ``files`` is the kind of data set whose path the user gives, ``without`` the rows that do not apply. ``start``
    are the fields in which plain training differs whose weights each run of the same seed starts with. With
    ``resplit`` each seed has a split of its own.
    """

    name: str
    values: Mapping[str, Any]
    about: str = ""
    files: str = ""
    without: tuple[str, ...] = ()
    start: Mapping[str, Any] = field(default_factory=dict)
    resplit: bool = False

    def start_run(self, seed: int, split: int) -> Run:
        """Return the run whose weights the task's runs with this seed start with."""
        task = dataclasses.replace(self, values={**self.values, **self.start})
        return task.run(Setting("plain"), seed, "epochs", split=split)

    def run(self, setting: Setting, seed: int, match: Match, init: str = "", split: int = 0) -> Run:
        """Return one run of the task, from the weights in ``init``.

        ``split`` is the number of its split, if seeds have splits of their own. Raises InputError for impossible
        values.
        """
        values: dict[str, Any] = {"init": init}
        for key, value in self.values.items():
            part, _, name = key.rpartition(".")
            (values.setdefault(part, {}) if part else values)[name] = value
        base: Run = from_dict(Run, values)
        optim = dataclasses.replace(
            base.optim,
            lr=_rounded(base.optim.lr * setting.lr),
            weight_decay=_rounded(base.optim.weight_decay * setting.weight_decay),
        )
        epochs = max(1, round(base.epochs * setting.epochs))
        data = base.data.with_split(split) if self.resplit else base.data
        base = dataclasses.replace(base, data=data, optim=optim, epochs=epochs)
        return dataclasses.replace(base, method=setting.method, seed=seed, match=match)


@dataclass(frozen=True)
class Suite:
    """Tasks, rows and seeds; the fields are those of its file (see `steppe.config.suites`)."""

    name: str
    title: str
    tasks: tuple[SuiteTask, ...]
    rows: tuple[SuiteRow, ...]
    tune: tuple[int, ...]
    final: tuple[int, ...]
    about: str = field(default="")

    def __post_init__(self) -> None:
        where = f"suite {self.name}"
        if both := {*self.tune} & {*self.final}:
            raise InputError(f"{where} tunes and compares on seed {min(both)}; give others")
        for kind in ("tune", "final"):
            seeds = getattr(self, kind)
            if not seeds or len({*seeds}) < len(seeds) or not all(type(s) is int for s in seeds):
                raise InputError(
                    f"{where}: seeds.{kind} is {list(seeds)}; give one or more different whole numbers"
                )
        if not self.tasks or not self.rows:
            raise InputError(f"{where} has no {'rows' if self.tasks else 'tasks'}; name at least one")
        counts = {row.name: len(row.settings_with(self.plain)) for row in self.rows}
        if len({*counts.values()}) > 1 or not all(counts.values()):
            text = ", ".join(f"{count} for {name}" for name, count in counts.items())
            raise InputError(f"{where} has unequal numbers of settings ({text}); give each row as many")
        for task in self.tasks:
            if not _FOLDER.fullmatch(task.name):
                raise InputError(f"{where}: task is {task.name!r}; give a name of letters, digits and hyphens")
            for name in {*task.without} - {*counts}:
                raise unknown(f"row of {where} in without", name, counts)
        if "plain" not in counts:
            raise InputError(f"{where} has no row plain, with which the others are compared; add it")

    @property
    def plain(self) -> tuple[Setting, ...]:
        """The settings of plain training."""
        return next((row.settings for row in self.rows if row.name == "plain"), ())

    def choose(
        self, tasks: Sequence[str] = (), rows: Sequence[str] = (), datasets: Sequence[str] = ()
    ) -> tuple[list[SuiteTask], list[SuiteRow], dict[str, str]]:
        """Return the tasks and rows with these names (all if none), and why tasks are left out.

        ``datasets`` are data sets with their paths, for the tasks that need files. Plain is always among the rows.

        Raises InputError for an unknown name, and for data that no task needs.
        """
        for kind, chosen, all_ in (("task", tasks, self.tasks), ("method", rows, self.rows)):
            for name in chosen:
                if name not in (every := [item.name for item in all_]):
                    raise unknown(f"{kind} of suite {self.name}", name, every)
        own, missing = [], {}
        needed = dict.fromkeys(task.files for task in self.tasks if task.files)
        paths = {_kind(dataset, needed): dataset for dataset in datasets}
        for task in self.tasks:
            if tasks and task.name not in tasks:
                continue
            if task.files and task.files not in paths:
                missing[task.name] = f"it needs files; give --datasets {task.files}:PATH"
                continue
            values = dict(task.values) | ({"dataset": paths[task.files]} if task.files else {})
            own.append(dataclasses.replace(task, values=values))
        return own, [r for r in self.rows if not rows or r.name in rows or r.name == "plain"], missing


def _kind(dataset: str, needed: Mapping[str, Any]) -> str:
    """Return the kind of data set among ``needed`` that a path provides; a folder is of the first kind."""
    kind, _, path = dataset.partition(":")
    if path and kind == "folder" and needed:
        return next(iter(needed))
    if not path or kind not in needed:
        text = " or ".join(f"{name}:PATH" for name in needed) or "none"
        raise InputError(f"datasets is {dataset!r}; the files that the suite's tasks need are {text}")
    return kind


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def names() -> list[str]:
    """Return the names of the built-in suites, sorted."""
    files = resources.files("steppe.config.suites").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def is_suite(recipe: str | None) -> bool:
    """Return whether a recipe's name is that of a suite or of a file of one."""
    return recipe is not None and (recipe in names() or recipe.endswith(_ENDINGS))


def load(name: str) -> Suite:
    """Return the built-in suite ``name``, or that of a YAML file; raises InputError if it is not usable."""
    if name.endswith(_ENDINGS):
        try:
            text = Path(name).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InputError(
                f"recipe is {name!r}, and it cannot be read ({reason}); give a suite's file"
            ) from None
    else:
        text = _built_in(name)
    try:
        return _parse(name, _with_base(yaml.safe_load(text)))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(f"recipe is {name!r}, which is no suite ({problem}); see docs/how-to/suite.md") from None


def _built_in(name: str) -> str:
    return resources.files("steppe.config.suites").joinpath(f"{name}.yaml").read_text("utf-8")


def _with_base(content: Any) -> Any:
    """Return a suite's content with that of the built-in suite which ``like`` names, where it has none of its own.

    Of tasks and rows only the named ones are taken; fields of a task replace those of the base.
    """
    if "like" not in content:
        return content
    if content["like"] not in names():
        raise unknown("suite in like", str(content["like"]), names())
    base = yaml.safe_load(_built_in(content["like"]))
    rows = {name: own or base["rows"][name] for name, own in content["rows"].items()}
    tasks = {}
    for name, own in content["tasks"].items():
        inherited = base["tasks"].get(name, {})
        without = [row for row in inherited.get("without", ()) if row in rows]
        tasks[name] = inherited | {"without": without} | (own or {})
    return base | content | {"tasks": tasks, "rows": rows}


def _parse(name: str, content: Any) -> Suite:
    shared = content.get("settings", {})
    resplit = content.get("resplit", False)
    if type(resplit) is not bool:
        raise InputError(f"suite {name}: resplit is {resplit!r}; give true or false")
    tasks = []
    for task, fields in content["tasks"].items():
        own = dict(fields)
        about, files = str(own.pop("about", "")), str(own.pop("files", ""))
        without, start = tuple(own.pop("without", ())), dict(own.pop("start", {}))
        tasks.append(SuiteTask(str(task), shared | own, about, files, without, start, resplit))
    best = content.get("best_of_plain", 0)
    if type(best) is not int or best < 0:
        raise InputError(f"suite {name}: best_of_plain is {best!r}; give a whole number, or leave it out")
    rows = [_row(str(row), fields, best) for row, fields in content["rows"].items()]
    seeds = content["seeds"]
    title, about = str(content["title"]), str(content.get("about", ""))
    return Suite(name, title, tuple(tasks), tuple(rows), tuple(seeds["tune"]), tuple(seeds["final"]), about)


def _row(name: str, content: Any, best: int) -> SuiteRow:
    """Return a row; a list is that of its settings. Those without factors are combined with plain's best."""
    fields = {"settings": content} if isinstance(content, list) else dict(content)
    settings = [_setting(name, setting) for setting in fields.pop("settings")]
    own_factors = name == "plain" or any(setting != Setting(setting.method) for setting in settings)
    return SuiteRow(name, tuple(settings), **fields, combined=0 if own_factors else best)


def _setting(row: str, content: Any) -> Setting:
    return Setting(content) if isinstance(content, str) else Setting(**({"method": row} | content))


def card(suite: Suite) -> str:
    """Return the whole suite as text for a terminal."""
    lines = [f"{suite.name}: {suite.title}", *([suite.about] if suite.about else []), "", "Tasks"]
    for task in suite.tasks:
        settings = ", ".join(f"{k} {v}" for k, v in task.values.items())
        lines += [f"  {task.name}: {task.about}", f"    {settings}"]
    lines += ["", "Rows, each with the settings among which it is tuned"]
    for row in suite.rows:
        kind = " (control)" if row.control else ""
        text = "; ".join(setting.text for setting in row.settings)
        best = f", each with the best {row.combined} of plain's factors" if row.combined else ""
        lines.append(f"  {row.name}{kind}: {text}{best}")
    seeds = f"tuning {' '.join(map(str, suite.tune))}; comparison {' '.join(map(str, suite.final))}"
    return "\n".join([*lines, "", f"Seeds: {seeds}"])
