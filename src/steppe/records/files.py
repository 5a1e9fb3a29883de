"""Files of JSON and JSON lines: written atomically, damage reported in one line.

A number that is not finite is written as ``null``, so that any JSON reader can open the files.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steppe.errors import InputError, RunError

_AGAIN = "remove it and run the command again"


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raises what ``write_text`` raises."""
    with _writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


def write_json(path: Path, obj: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically; raises what ``write_text`` raises."""
    write_text(path, _dumps(obj, indent=2) + "\n")


def write_text(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a temporary file in its folder is synced to disk, then renamed.

    Raises:
        RunError: The system refused (full disk, no permission); the old file is intact.
    """
    path = Path(path)
    with _writing(path), contextlib.ExitStack() as undo:
        # not by tempfile, whose files are private; a comparison is often shared
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        undo.callback(temporary.unlink, missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def append_line(path: Path, obj: Mapping[str, Any], *, sync: bool = True) -> None:
    """Append one JSON object as a line, replacing a torn last line; raises what ``write_text`` raises.

    With ``sync`` this line and those before it are on the disk afterwards.
    """
    line = _dumps(obj).encode() + b"\n"
    # Unbuffered: a buffer would write again at close what was just truncated.
    with _writing(path), open(path, "a+b", buffering=0) as file:
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        try:
            while line:
                line = line[file.write(line) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def keep_lines(path: Path, count: int) -> None:
    """Truncate a ``.jsonl`` file to its first ``count`` lines, atomically; a missing file counts as empty.

    Raises:
        RunError: The file has fewer lines, or the system refused; the file is unchanged.
    """
    lines = (_read(path) or b"").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < count:
        raise RunError(f"{path} holds {len(whole)} of {count} epochs; remove its folder and run the command again")
    if len(lines) > count:
        write_text(path, b"".join(whole[:count]))


def keep_as(path: Path, other: Path) -> None:
    """Make ``other`` a second name of the file at ``path``, or a copy of it; raises as ``write_text`` does."""
    # a fixed temporary name: what a killed process leaves is removed by the next call
    temporary = other.with_name(f".{other.name}.tmp")
    with _writing(other):
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            # not every file system has links
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)


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


def read_json(path: Path, remedy: str = _AGAIN) -> dict[str, Any]:
    """Return the object in a JSON file; raises InputError if it is missing, cannot be read or is no object."""
    content = read_json_if_exists(path, remedy)
    if content is None:
        raise InputError(f"{path} is missing; {remedy}")
    return content


def read_json_if_exists(path: Path, remedy: str = _AGAIN) -> dict[str, Any] | None:
    """Return the object in a JSON file, None if there is no file; raises as ``read_json`` does."""
    if (text := _read(path)) is None or (content := _parse(text)) is not None:
        return None if text is None else content
    raise InputError(f"{path} is damaged: not a JSON object; {remedy}")


def _read(path: Path) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; make sure it can be read") from error


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
        remedy = "free some space" if full else "make sure it can be written"
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; {remedy} and run the same command again"
        ) from error
