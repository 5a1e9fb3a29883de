"""Functions and classes of the user: imported only if the user names them, found again by their names.

A configuration names code of the user's by text, ``package.module:name`` or ``path/to/file.py:name``. A name
becomes an object only if this process's user gave it, on the command line (`allow`) or as an object (`register`).
A name that comes from a record or a settings file alone is refused by `get`: reading these imports nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from steppe.errors import InputError, unknown

_log = logging.getLogger(__name__)
_REFERENCE = re.compile(r"([A-Za-z_][\w.]*|[^:]+\.py):([A-Za-z_]\w*)")
_objects: dict[tuple[str, str], Any] = {}  # by kind and name; the kind "" is any
_reported: set[tuple[str, ...]] = set()  # changed sources that were named


def reference_in(text: str) -> str | None:
    """Return the reference that a text is or starts with, ``module:name`` or ``file.py:name``, if any.

    What follows after a further colon are settings: ``module:Class:rho=0.1``.
    """
    match = _REFERENCE.match(text)
    return match[0] if match and text[match.end() :][:1] in ("", ":") else None


def is_registered(kind: str, name: str) -> bool:
    """Return whether the user gave an object of this name."""
    return (kind, name) in _objects or ("", name) in _objects


def register(kind: str, name: str, value: Any) -> None:
    """Make ``value`` what ``name`` stands for in this process and in its workers."""
    _objects[kind, name] = value


@contextmanager
def registered(objects: dict[tuple[str, str], Any]) -> Iterator[None]:
    """Register objects within the context; then forget them, so that no data set stays in memory."""
    before = dict(_objects)
    _objects.update(objects)
    try:
        yield
    finally:
        _objects.clear()
        _objects.update(before)


def allow(reference: str) -> None:
    """Import the code that the user names; raises InputError as `load` does."""
    if ("", reference) not in _objects:
        _objects["", reference] = load(reference)


def get(kind: str, name: str) -> Any:
    """Return the object that the user gave under this name.

    Raises InputError for a name that only a record or a settings file has, and for an unknown one.
    """
    for key in ((kind, name), ("", name)):
        if key in _objects:
            return _objects[key]
    raise InputError(
        f"{kind} {name!r} is code that only a file names; name it yourself to run it: --code {name} (diagnose, "
        f"export), --{kind} {name}, or give the object in Python"
    )


def name_of(kind: str, value: Any) -> str | None:
    """Return the name under which the user gave an object of this kind, if any."""
    names = (name for (of, name), one in _objects.items() if of in (kind, "") and one is value)
    return next(names, None)


def load(reference: str) -> Any:
    """Import ``module:name`` or ``path/to/file.py:name``; modules of the working folder can be imported.

    Raises InputError for what cannot be imported or has no such name.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference!r} names no code; write package.module:name, or path/to/file.py:name")
    module = import_module(match[1])
    if not hasattr(module, match[2]):
        raise unknown(f"name in {match[1]}", match[2], [n for n in dir(module) if not n.startswith("_")])
    return getattr(module, match[2])


def import_module(name: str) -> ModuleType:
    """Import a module by its name or by the path of its file; raises InputError if that fails."""
    path = Path(name).resolve() if name.endswith(".py") else None
    if path is not None and not path.is_file():
        raise InputError(f"there is no file {name}; give the path of one, or module:name")
    folder, module_name = (os.getcwd(), name) if path is None else (str(path.parent), path.stem)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                f"there is no module {name} here or installed; give a name of `steppe list`, or module:name"
            ) from None
        raise InputError(f"{name} cannot be imported: it needs {error.name}; install that") from None
    except Exception as error:
        raise InputError(f"{name} cannot be imported: {type(error).__name__}: {error}; repair it first") from None
    if path is not None and Path(module.__file__ or "").resolve() != path:
        raise InputError(f"{name} has the name of another module, {module_name}; rename the file")
    return module


def reference_of(value: Any) -> str:
    """Return the name that records give an object: module and name of its function or class.

    That of a running script is the name of its file.
    """
    named = _named(value)
    module = str(getattr(named, "__module__", None) or "__main__")
    if module == "__main__":
        module = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "notebook").stem
    name = str(getattr(named, "__qualname__", type(named).__name__)).rpartition("<locals>.")[2].strip("<>")
    return f"{module}:{name}"


def is_importable(value: Any) -> bool:
    """Return whether another process can import this object by its module and name."""
    named = _named(value)
    module, name = getattr(named, "__module__", None), str(getattr(named, "__qualname__", ""))
    if named is not value or module in (None, "__main__"):
        return False
    return getattr(sys.modules.get(str(module)), name, None) is value


def fingerprint(value: Any) -> str:
    """Return a hash of the source of a function or class; empty if it has none."""
    named = _named(value)
    if str(getattr(named, "__module__", "")).startswith("steppe."):  # ours: data in memory
        return ""
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def fingerprints(names: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return name and source fingerprint of those of ``names``, by kind, that are code of the user's."""
    return {
        kind: {
            "name": name,
            "object": reference_of(get(kind.partition(" ")[0], name)),
            "source": fingerprint(get(kind.partition(" ")[0], name)),
        }
        for kind, name in names.items()
        if is_registered(kind.partition(" ")[0], name)
    }


def report_changes(where: Path, stored: Any, now: dict[str, dict[str, str]]) -> None:
    """Log a line for each object whose source is another than a record's; of a comparison's runs for the first."""
    for kind, entry in now.items():
        before = stored.get(kind) if isinstance(stored, dict) else None
        source = before.get("source") if isinstance(before, dict) else None
        change = str(where.parent), kind, entry["name"], str(source), entry["source"]
        if source and entry["source"] and source != entry["source"] and change not in _reported:
            _reported.add(change)
            _log.warning("the source of %s %s has changed since %s was started", kind, entry["name"], where)


def _named(value: Any) -> Any:
    """Return what has a name and a source: a function or class, that of a ``partial``, or an object's class."""
    while isinstance(value, partial):
        value = value.func
    if inspect.isroutine(value) or inspect.isclass(value):
        return value
    function = getattr(value, "__wrapped__", None)  # of a ModelLoss
    return type(value) if function is None else _named(function)


class Code:
    """All objects that the user gave, for another process: unpickling registers them.

    Functions without an importable name travel by value (cloudpickle).
    """

    def __init__(self) -> None:
        self._objects = dict(_objects)
        self._content: bytes | None = None

    @property
    def unnamed(self) -> list[str]:
        """The names of objects that another process cannot import, and of data in memory."""
        return [name for (_, name), value in self._objects.items() if not is_importable(value)]

    def __reduce__(self) -> Any:
        if not self._objects:
            return Code, ()
        if self._content is None:  # made once for all workers
            import cloudpickle

            self._content = cloudpickle.dumps(self._objects)
        return _install, (self._content,)


def _install(content: bytes) -> Code:
    import pickle

    # from the process of the same user that started this one
    _objects.update(pickle.loads(content))
    return Code()
