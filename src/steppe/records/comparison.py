"""Run folders as plain data: what a comparison was, what every run measured, and how it is put on disk.

A comparison's folder holds ``compare.json`` (what was asked for) and ``runs/<digest>/`` with ``config.json``,
``metrics.jsonl`` (one line per epoch, equal for equal configurations), ``timing.jsonl`` (one line per epoch,
different every time) and ``result.json`` (written once, at the end). Reading needs no torch.

A number that is not finite is written as ``null``, so that any JSON reader can open the files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steppe.errors import InputError, RunError

FORMAT = 1
Status = Literal["ok", "failed", "unfinished"]
_NUMBER = (int, float)
_RESULT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "message"), (str,)),
    **dict.fromkeys(("epochs", "steps", "skipped", "seconds", "peak_memory_mb", "parameters"), _NUMBER),
    **dict.fromkeys(("test", "val", "passes", "environment"), (dict,)),
}
_EPOCH = (
    "epoch", "progress", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss",
    "test_accuracy", "steps", "gradients", "skipped", "seconds", "images_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One run as found on disk.

    Attributes:
        digest: Name of the run and of its folder.
        method: Label of the method: its row in the tables.
        model, dataset, seed: What else it was run on; methods are paired by seed.
        metrics: One mapping per finished epoch; accuracies are fractions, ``gradients`` is cumulative.
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
    """A comparison as found on disk; the fields are those of ``compare.json`` and the runs read.

    Attributes:
        folder, created, command: Where it is, when it was started (ISO 8601), the command that repeats it.
        environment, study: Versions, processor and device; the configuration.
        data: Per data set, the number of images in each part of the split.
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


def load(folder: Path) -> Comparison:
    """Read a comparison's folder.

    A run without ``result.json`` is unfinished; a torn last line of a ``.jsonl`` file is ignored.

    Raises:
        InputError: The folder or its ``compare.json`` is missing, or a file in it is damaged.
    """
    folder = Path(folder)
    path = folder / "compare.json"
    content = _read_json(path)
    if content is None:
        what = f"{folder} has no compare.json" if folder.is_dir() else f"there is no folder {folder}"
        raise InputError(f"{what}; give the folder that `steppe compare` wrote")
    if (found := content.get("format")) != FORMAT:
        raise InputError(f"{path} has format {found!r} and this version reads {FORMAT}; update steppe")
    try:
        methods = {label: dict(about) for label, about in content["methods"].items()}
        records = [_record(folder, run, methods) for run in content["runs"]]
        digests = [record.digest for record in records]
        if len(set(digests)) < len(digests):
            raise ValueError("it names a run twice")
        data = {name: dict(about) for name, about in content["data"].items()}
        created, command = str(content["created"]), str(content["command"])
        environment, study = dict(content["environment"]), dict(content["study"])
        return Comparison(folder, created, command, environment, study, data, methods, records)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = f"has no {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise InputError(f"{path} {what}; start the comparison in a new folder") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; raises what ``write_text`` raises."""
    with _writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


def append_line(path: Path, obj: Mapping[str, Any]) -> None:
    """Add one JSON object as a line, in place of a torn last line; raises what ``write_text`` raises."""
    line = _dumps(obj).encode() + b"\n"
    # Unbuffered: a buffer would try again at close, and put back what was just cut off.
    with _writing(path), open(path, "a+b", buffering=0) as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, whole)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a ``.jsonl`` file; none if it is missing. A torn last line is ignored.

    Raises:
        InputError: A line other than the last is not a JSON object, or the file cannot be read.
    """
    lines = [line for line in (_read(path) or b"").split(b"\n") if line.strip()]
    objects = [_parse(line) for line in lines]
    if None in objects[:-1]:
        number = objects.index(None) + 1
        raise InputError(f"{path} line {number} is damaged; remove its folder and run the command again")
    return [content for content in objects if content is not None]


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return what a run measured, epoch by epoch, as `read_lines` does.

    Raises:
        InputError: As `read_lines`, or what should be a number is none.
    """
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        for key in _EPOCH:
            if not isinstance(line.get(key), (*_NUMBER, type(None))):
                said = f"{path} line {number} is damaged: {key} is {line[key]!r:.40}"
                raise InputError(f"{said}; remove its folder and run the command again")
    return lines


def read_json(path: Path, remedy: str = "remove it and run the command again") -> dict[str, Any]:
    """Return the object in a JSON file; raises InputError if it is missing, cannot be read or holds no object."""
    content = _read_json(path, remedy)
    if content is None:
        raise InputError(f"{path} is missing; {remedy}")
    return content


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a run's result, None if there is no such file.

    Raises:
        InputError: The file cannot be read, or a value in it is not of the kind that a run writes.
    """
    content = _read_json(path)
    if content is None:
        return None
    if "status" not in content:
        raise InputError(f"{path} has no status; remove its folder and run the command again")
    for key, kinds in _RESULT.items():
        if not isinstance(content.get(key), (*kinds, type(None))):
            given = f"{content[key]!r:.40}"
            raise InputError(f"{path} is damaged: {key} is {given}; remove its folder and run the command again")
    return content


def keep_lines(path: Path, count: int) -> None:
    """Cut a ``.jsonl`` file to its first ``count`` lines, all at once; a missing file counts as empty.

    Raises:
        RunError: The file holds fewer lines than that, or the system refused; the file is as it was.
    """
    lines = (_read(path) or b"").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < count:
        raise RunError(f"{path} holds {len(whole)} of {count} epochs; remove its folder and run the command again")
    if len(lines) > count:
        write_text(path, b"".join(whole[:count]))


def write_json(path: Path, obj: Mapping[str, Any]) -> None:
    """Write an object as JSON, all at once; raises what ``write_text`` raises."""
    write_text(path, _dumps(obj, indent=2) + "\n")


def write_text(path: Path, content: str | bytes) -> None:
    """Write a file all at once: a temporary file beside it is synced to disk, then takes its name.

    Raises:
        RunError: The system refused (full disk, no permission); the old file is intact.
    """
    path = Path(path)
    with _writing(path), contextlib.ExitStack() as undo:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        undo.callback(Path(temporary).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are their owner's alone; a comparison is often shared
        os.replace(temporary, path)


def keep_as(path: Path, other: Path) -> None:
    """Let ``other`` be what the file at ``path`` is now, whatever becomes of it; raises as ``write_text`` does."""
    # one name, not one of its own each time: what a kill leaves behind is gone with the next call
    held = other.with_name(f".{other.name}.tmp")
    with _writing(other):
        held.unlink(missing_ok=True)
        try:
            os.link(path, held)
        except OSError:
            # not every file system can
            shutil.copyfile(path, held)
        os.replace(held, other)


def _record(folder: Path, run: Mapping[str, Any], methods: Mapping[str, Any]) -> Record:
    digest, method = str(run["digest"]), str(run["method"])
    # The digest becomes a path: a damaged or hostile file must not reach outside its own folder.
    if not re.fullmatch(r"[0-9A-Za-z_-]+", digest):
        raise ValueError(f"digest {digest!r} has characters other than letters and digits")
    if method not in methods:
        raise ValueError(f"run {digest} is of method {method!r}, which is not listed")
    home = folder / "runs" / digest
    result = read_result(home / "result.json")
    model, dataset, seed = str(run["model"]), str(run["dataset"]), int(run["seed"])
    metrics, timing = read_epochs(home / "metrics.jsonl"), read_epochs(home / "timing.jsonl")
    return Record(digest, method, model, dataset, seed, metrics, timing, result)


def _read(path: Path) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; make sure it can be read") from error


def _read_json(path: Path, remedy: str = "remove it and run the command again") -> dict[str, Any] | None:
    if (text := _read(path)) is None or (content := _parse(text)) is not None:
        return None if text is None else content
    raise InputError(f"{path} is damaged: not a JSON object; {remedy}")


def _parse(text: bytes) -> dict[str, Any] | None:
    # RecursionError: brackets in brackets, deeper than any record
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(text, parse_constant=lambda _: None)
        return content if isinstance(content, dict) else None
    return None


def _dumps(obj: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_finite(obj), allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "free some space" if full else "make sure it can be written"
        said = f"cannot write {path}: {error.strerror or error}"
        raise RunError(f"{said}; {way_out} and run the same command again") from error
