"""From configuration dataclasses to flags of the command line, and back."""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Callable
from typing import Any

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, Namespace


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
