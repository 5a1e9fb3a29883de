"""From configuration dataclasses to flags of the command line, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, Namespace

from steppe.errors import InputError

MOST = 10_000  # values in a file of settings, those counted again that are named again


class ConfigFile(ActionConfigFile):
    """A file of settings, looked through before the parser sees it.

    Raises InputError for one that is no text, no YAML, no settings, or that means much more than it says.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check the file, then read it."""
        with contextlib.suppress(FileNotFoundError):  # told by the parser
            _check_file(parser, str(values))
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def _check_file(parser: ArgumentParser, name: str) -> None:
    try:
        text = Path(name).read_bytes().decode()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ValueError("it is empty")
        _size(node, {})
        held = yaml.safe_load(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else _reason(error)
        raise InputError(f"config is {name!r}, and parsing it fails ({reason}); give a YAML file") from None
    if not isinstance(held, dict):
        raise InputError(f"config is {name!r}, which holds no settings; write a line for each, as batch: 32")
    flags = [o.removeprefix("--") for a in parser._actions for o in a.option_strings]
    parts = {flag.partition(".")[0] for flag in flags if "." in flag}
    needed = {o.removeprefix("--") for a in parser._actions if a.default is not None for o in a.option_strings}
    for key, value in held.items():
        given = f"{key} is {value!r:.60}"
        inner = value.items() if isinstance(value, dict) else ()
        if empty := needed & {key if value is None else "", *(f"{key}.{k}" for k, v in inner if v is None)}:
            raise InputError(f"{min(empty)} is null in {name}; give a value, or leave the line out")
        if key in parts and not isinstance(value, dict):
            raise InputError(f"{given} in {name}; write its settings below it, a line for each")
        if key in flags and isinstance(value, dict):
            raise InputError(f"{given} in {name}; it has no settings below it, write a value or a list")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a node; raises ValueError for too many or for a node inside itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("a value holds itself")
        return known[id(node)]
    known[id(node)] = 0
    below = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    count = 1 + sum(_size(part, known) for part in below)
    if count > MOST:
        raise ValueError(f"it has more than {MOST} values")
    known[id(node)] = count
    return count


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is too deep"
    return " ".join(str(error).split())[:200]


def add_fields(parser: ArgumentParser, cls: type, prefix: str = "") -> None:
    """Add a flag per field of a configuration dataclass, nested ones with a dot."""
    hints, described = typing.get_type_hints(cls), _described(cls)
    defaults = cls()
    for f in dataclasses.fields(cls):
        hint, default = hints[f.name], getattr(defaults, f.name)
        if dataclasses.is_dataclass(hint):
            add_fields(parser, typing.cast(type, hint), f"{prefix}{f.name}.")
            continue
        options: dict[str, Any] = {"default": default, "help": described.get(f.name, "")}
        if typing.get_origin(hint) is tuple:
            options |= {"type": typing.get_args(hint)[0], "nargs": "*", "default": list(default)}
        elif hint is bool:
            options |= {"action": ActionYesNo}
        else:
            options["type"] = hint
        parser.add_argument(f"--{prefix}{f.name}", **options)


def _described(cls: type) -> dict[str, str]:
    """Return each field's description from the docstrings of the class and its bases."""
    described: dict[str, str] = {}
    for c in cls.__mro__:
        for p in docstring_parser.parse(c.__doc__ or "").params:
            described.setdefault(p.arg_name, " ".join((p.description or "").split()))
    return described


def explicit(build: Callable[[ArgumentParser], None], cls: type, command: str) -> dict[str, Any]:
    """Return the fields of a configuration that a command or its file states, nested ones with a dot."""
    parser = ArgumentParser()
    build(parser)
    given = parser.parse_args(shlex.split(command)[2:], defaults=False)
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in vars(given.as_flat()).items() if k.partition(".")[0] in names}


def make(cls: Callable[..., Any], given: Namespace) -> Any:
    """Make the configuration that the flags and the file describe."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(typing.cast(Any, cls)):
        value = given[f.name]
        if dataclasses.is_dataclass(hints[f.name]):
            value = make(hints[f.name], value)
        values[f.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
