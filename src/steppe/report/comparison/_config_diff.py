"""The settings in which the runs and the methods of a comparison differ."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from steppe.records import Comparison
from steppe.records.files import read_json_if_exists
from steppe.report.formatting import plain_text

# These differ between the runs of a grid by design.
_GRID = ("method", "model", "dataset", "seed", "resolved", "digest", "images")
_SPLIT = "data.split_seed"  # by design too, if each seed has a split of its own


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the entries of nested settings as dotted names and text."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def of_runs(comparison: Comparison) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return the settings that are not equal in all runs: per setting, each value and the methods that have it."""
    settings: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for record in comparison.records:
        path = comparison.folder / "runs" / record.digest / "config.json"
        own = read_json_if_exists(path) or {}
        for key, value in flat({k: v for k, v in own.items() if k not in _GRID}):
            settings[plain_text(key)][plain_text(value)][plain_text(record.method)] = None
    return [
        (key, [(value, list(methods)) for value, methods in values.items()])
        for key, values in settings.items()
        if len(values) > 1 and not (comparison.resplit and key == _SPLIT)
    ]


def of_methods(comparison: Comparison) -> dict[str, list[tuple[str, bool]]]:
    """Return each method's resolved settings in pieces, true for those in which methods of one class differ.

    ``SAM(rho=0.05, norm='global')`` and ``SAM(rho=0.2, norm='global')`` differ in rho.
    """
    texts = {label: plain_text(about.get("resolved") or "") for label, about in comparison.methods.items()}
    parsed = {label: _settings(text) for label, text in texts.items()}
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, settings in parsed.values():
        for key, value in settings:
            values[name, key].add(value)
    pieces = {}
    for label, (name, settings) in parsed.items():
        items = [(f"{key}={value}", len(values[name, key]) > 1) for key, value in settings]
        joined = [part for item in items for part in ((", ", False), item)][1:]
        pieces[label] = [(f"{name}(", False), *joined, (")", False)] if settings else [(texts[label], False)]
    return pieces


def _settings(resolved: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the class and the keywords of ``Class(name=value, ...)``; no keywords of anything else."""
    try:
        call = ast.parse(resolved, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return resolved, []
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        return resolved, []
    return call.func.id, [(k.arg, ast.unparse(k.value)) for k in call.keywords if k.arg]
