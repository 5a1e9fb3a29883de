"""A suite's folder as plain data: the tasks, the tuning and the comparisons of each view."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steppe.errors import InputError
from steppe.records.comparison import COMPARISON, FORMAT, Comparison, load
from steppe.records.files import read_json_if_exists

SUITE, TUNING = "suite.json", "tuning.json"
VIEWS = {"compute": COMPARISON, "epochs": "epochs.json"}


@dataclass(frozen=True)
class SuiteRecords:
    """What a suite has on disk.

    Attributes:
        views: Per view, ``compute`` and ``epochs``, all tasks as one comparison, each a data set of its name.
        controls: Rows that are controls.
        tasks: Per task one sentence about it; ``missing``: why a task is left out.
        resplit: Whether each seed has a split of its own.
        tuning: Per task and row the ``settings``, their validation ``values`` by seed, and the number ``chosen``.
    """

    title: str
    about: str
    seeds: Mapping[str, list[int]]
    views: dict[str, Comparison]
    controls: tuple[str, ...]
    tasks: dict[str, str]
    missing: dict[str, str]
    tuning: dict[str, dict[str, Any]]
    resplit: bool = False


def load_suite(folder: Path) -> SuiteRecords:
    """Read a suite's folder, whose tasks may be unfinished; raises InputError if it is none or damaged."""
    folder = Path(folder)
    path = folder / SUITE
    content = read_json_if_exists(path)
    if content is None:
        raise InputError(f"{folder} has no {SUITE}; give the folder that `steppe compare recipe=SUITE` wrote")
    if content.get("format") != FORMAT:
        raise InputError(f"{path} has format {content.get('format')!r} and this version reads {FORMAT}")
    try:
        names = [name for name in content["tasks"] if (folder / name / COMPARISON).exists()]
        tuning = {name: (read_json_if_exists(folder / name / TUNING) or {}).get("rows", {}) for name in names}
        return SuiteRecords(
            str(content["title"]),
            str(content["about"]),
            dict(content["seeds"]),
            {view: _joined(folder, content, names, file) for view, file in VIEWS.items()},
            tuple(row for row, about in content["rows"].items() if about["control"]),
            {name: str(content["tasks"][name]["about"]) for name in names},
            dict(content["missing"]),
            tuning,
            bool(content.get("resplit")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error!r}); run the suite's command again") from error


def _joined(folder: Path, content: Mapping[str, Any], names: list[str], file: str) -> Comparison:
    """Return a view of all tasks as one comparison."""
    own = {name: load(folder / name, file) for name in names}
    methods: dict[str, dict[str, Any]] = {}
    for row in content["rows"]:
        about = next((c.methods[row] for c in own.values() if row in c.methods), None)
        methods |= {row: about} if about else {}
    data = {name: next(iter(c.data.values()), {}) for name, c in own.items()}
    records = [replace(record, dataset=name) for name, c in own.items() for record in c.records]
    created, command = str(content["created"]), str(content["command"])
    return Comparison(folder, created, command, dict(content["environment"]), {}, data, methods, records)
