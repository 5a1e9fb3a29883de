"""The text form of a data set: name, path and options; one name for each, however its path is written."""

import os
import re
from collections.abc import Mapping

from steppe.errors import InputError, unknown

_WITH_PATH = ("folder", "cifar10", "cifar100")
_OPTIONS = {
    "table": ("target", "task", "unit", "drop", "categories", "split"),
    "images": ("image", "label", "task", "unit", "separator", "split"),
    "text": ("by", "length"),
    "pydoc-text": ("length",),
    "digits": ("test",),
}


def parse_dataset(dataset: str) -> tuple[str, str, dict[str, str]]:
    """Split ``name:PATH:key=value,key=value`` into name, path and options.

    Digits, and data sets of tables, image lists and text, have options; the path of others is all that follows
    the name. The first ``:key=`` begins the options, so a path may have colons.

    Raises InputError for an option that the data set does not have, or that is set twice.
    """
    name, _, path = dataset.partition(":")
    if name not in _OPTIONS:
        return name, path, {}
    has_path = name not in ("pydoc-text", "digits")
    match = re.fullmatch(r"(.+?:)(\w+=.*)" if has_path else r"()(\w+=.*)", path, re.DOTALL)
    if match is None:
        return name, path, {}
    options: dict[str, str] = {}
    for item in re.split(r",(?=\w+=)", match[2]):
        key, _, value = item.partition("=")
        if key not in _OPTIONS[name]:
            raise unknown(f"option of data set {name}", key, _OPTIONS[name])
        if key in options or not value:
            raise InputError(
                f"data set {dataset!r} sets {key} " + ("twice; give it once" if key in options else "to nothing")
            )
        options[key] = value
    return name, match[1].removesuffix(":"), options


def with_path(dataset: str, path: str) -> str:
    """Return a data set's text with another path, and its name and options."""
    name, _, options = parse_dataset(dataset)
    return f"{name}:{path}{_suffix(options)}"


def _suffix(options: Mapping[str, str]) -> str:
    return "".join(f"{',' if i else ':'}{key}={options[key]}" for i, key in enumerate(sorted(options)))


def dataset_name(dataset: str) -> str:
    """Return ``name:PATH`` with the path relative to the working folder if it is in it, else absolute.

    ``x``, ``./x/``, ``~/photos/x`` and a link to ``x`` become the same path. A link in the working folder that
    leads out of it keeps its name, as it may lead elsewhere on another machine or in the next job. Options are
    sorted.
    """
    name, path, options = parse_dataset(dataset)
    if (name not in _WITH_PATH and name not in _OPTIONS) or path in ("", "download"):
        return f"{name}{_suffix(options)}" if options else dataset
    return f"{name}:{canonical_path(path)}{_suffix(options)}"


def canonical_path(path: str) -> str:
    """Return a path relative to the working folder if it is in it, else absolute, without links."""
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        return path
    written = os.path.join(folder, os.path.expanduser(path))
    resolved = _resolved(written)
    candidates = [(resolved, os.path.realpath(folder))]
    if os.pardir not in written.split(os.sep):  # behind a link it leads elsewhere than it reads
        candidates.append((written, folder))
    for inside, root in candidates:
        relative = os.path.relpath(inside, root)
        if relative.partition(os.sep)[0] != os.pardir:
            return relative
    return resolved


def _resolved(path: str) -> str:
    """Return a path without links; an archive keeps its ending, which a cache's file may lack."""
    path = path.rstrip(os.sep)
    resolved = os.path.realpath(path)
    if os.path.splitext(resolved)[1] == os.path.splitext(path)[1] or os.path.isdir(path):
        return resolved
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
