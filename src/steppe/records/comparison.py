"""A comparison's folder as plain data.

The folder has ``compare.json`` (the configuration) and ``runs/<digest>/`` with ``config.json``, ``metrics.jsonl``
(one line per epoch, equal for equal configurations), ``timing.jsonl`` (one line per epoch, different every time)
and ``result.json`` (written once, at the end).
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steppe.errors import InputError
from steppe.records.files import read_json_if_exists, read_lines

FORMAT, COMPARISON = 1, "compare.json"
Status = Literal["ok", "failed", "unfinished"]
_NUMBER = (int, float)
_RESULT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "message"), (str,)),
    **dict.fromkeys(("epochs", "steps", "skipped", "seconds", "peak_memory_mb", "parameters"), _NUMBER),
    **dict.fromkeys(("test", "val", "passes", "environment"), (dict,)),
}
_EPOCH = (
    "epoch", "progress", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss",
    "test_accuracy", "val_metric", "test_metric", "steps", "gradients", "skipped", "seconds", "images_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What one run has on disk.

    Attributes:
        digest: Name of the run and of its folder.
        method: Label of the method: its row in the tables.
        model, dataset, seed: The rest of its configuration; methods are paired by seed.
        metrics: One mapping per finished epoch; accuracies are fractions; another metric has the
            keys ``val_metric`` and ``test_metric``; ``gradients`` is cumulative.
        timing: One mapping per finished epoch; ``seconds`` is cumulative training time.
        result: Content of ``result.json``; None while the run is unfinished.
    """

    digest: str
    method: str
    model: str
    dataset: str
    seed: int
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def status(self) -> Status:
        """Return 'ok', 'failed' or 'unfinished'; a run without a test result is never 'ok'."""
        if self.result is None:
            return "unfinished"
        return "ok" if self.result["status"] == "ok" and self.result.get("test") else "failed"

    @property
    def message(self) -> str:
        """Return why the run failed, or an empty string."""
        return str((self.result or {}).get("message") or "")


@dataclass(frozen=True)
class Comparison:
    """What a comparison has on disk: the fields of ``compare.json``, and its runs.

    Attributes:
        folder, created, command: Where it is, when it started (ISO 8601), the command that repeats it.
        environment, study: Versions, processor and device; the configuration.
        data: Per data set, the number of images in each part of the split, the classes, notes and fingerprint.
        methods: Per label, in row order: ``summary``, ``resolved`` hyper-parameters, ``controls``.
        records: Every run of the grid, in grid order.
    """

    folder: Path
    created: str
    command: str
    environment: dict[str, Any]
    study: dict[str, Any]
    data: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    records: list[Record]

    @property
    def resplit(self) -> bool:
        """Whether each seed has a split of its own."""
        return bool(self.study.get("resplit"))


def load(folder: Path, file: str = COMPARISON) -> Comparison:
    """Read a comparison's folder; ``file`` in it lists the runs.

    A run without ``result.json`` is unfinished; a torn last line of a ``.jsonl`` file is ignored.

    Raises:
        InputError: The folder or its ``compare.json`` is missing, a file in it is damaged, or a run was trained on
            other images than the comparison has.
    """
    folder = Path(folder)
    path = folder / file
    content = read_json_if_exists(path)
    if content is None:
        problem = f"{folder} has no {file}" if folder.is_dir() else f"there is no folder {folder}"
        raise InputError(f"{problem}; give the folder that `steppe compare` wrote")
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {content.get('format')!r} and this version reads {FORMAT}; update steppe"
        )
    try:
        methods = {label: dict(about) for label, about in content["methods"].items()}
        data = {name: dict(about) for name, about in content["data"].items()}
        records = [_record(folder, run, methods, data) for run in content["runs"]]
        if len({(record.digest, record.method) for record in records}) < len(records):
            raise ValueError("it names a run twice")
        created, command = str(content["created"]), str(content["command"])
        environment, study = dict(content["environment"]), dict(content["study"])
        return Comparison(folder, created, command, environment, study, data, methods, records)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = f"has no {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise InputError(f"{path} {problem}; start the comparison in a new folder") from error


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return a run's measurements, one mapping per epoch, as `read_lines` does.

    Raises:
        InputError: As `read_lines`, or a value that must be a number is not.
    """
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        for key in _EPOCH:
            _check_type(f"{path} line {number}", line, key, _NUMBER)
    return lines


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a run's result, None if there is no such file.

    Raises:
        InputError: The file cannot be read, or a value in it has the wrong type.
    """
    content = read_json_if_exists(path)
    if content is None:
        return None
    if "status" not in content:
        raise InputError(f"{path} has no status; remove its folder and run the command again")
    for key, types in _RESULT.items():
        _check_type(str(path), content, key, types)
    return content


def _check_type(where: str, content: Mapping[str, Any], key: str, types: tuple[type, ...]) -> None:
    if not isinstance(content.get(key), (*types, type(None))):
        problem = f"{where} is damaged: {key} is {content[key]!r:.40}"
        raise InputError(f"{problem}; remove its folder and run the command again")


def _check_images(home: Path, about: Mapping[str, Any], dataset: str) -> None:
    """Raise InputError if a run was trained on other images than the comparison describes."""
    images: Any = None
    with contextlib.suppress(InputError):  # a damaged configuration says nothing about the images
        images = (read_json_if_exists(home / "config.json") or {}).get("images")
    if isinstance(images, Mapping) and images.get("fingerprint") != about.get("fingerprint"):
        raise InputError(
            f"{home} was trained on other images of {dataset} than this comparison; remove it and run the "
            "command again"
        )


def _record(
    folder: Path, run: Mapping[str, Any], methods: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]
) -> Record:
    digest, method = str(run["digest"]), str(run["method"])
    # The digest becomes a path: a damaged or hostile file must not reach outside its own folder.
    if not re.fullmatch(r"[0-9A-Za-z_-]+", digest):
        raise ValueError(f"digest {digest!r} has characters other than letters and digits")
    if method not in methods:
        raise ValueError(f"run {digest} is of method {method!r}, which is not listed")
    home = folder / "runs" / digest
    result = read_result(home / "result.json")
    model, dataset, seed = str(run["model"]), str(run["dataset"]), int(run["seed"])
    _check_images(home, data.get(dataset, {}), dataset)
    metrics, timing = read_epochs(home / "metrics.jsonl"), read_epochs(home / "timing.jsonl")
    return Record(digest, method, model, dataset, seed, metrics, timing, result)
