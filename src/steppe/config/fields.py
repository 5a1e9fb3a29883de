"""The fields of a configuration: their types as text has them, and a configuration from plain data."""

import typing
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any

from steppe.errors import unknown

_AS_TEXT: dict[Any, Any] = {Any: str, tuple[Any, ...]: tuple[str, ...]}  # methods


def added(default: Any) -> Any:
    """Return a field that is stored only where it differs from its default: older runs keep their names."""
    return field(default=default, metadata={"added": True})


def stored(config: Any) -> dict[str, Any]:
    """Return the values of a configuration by field, without fields that were `added` at their default."""
    return {
        f.name: getattr(config, f.name)
        for f in fields(config)
        if not (f.metadata.get("added") and getattr(config, f.name) == f.default)
    }


def field_types(cls: Any) -> dict[str, Any]:
    """Return the type of each field in a file or on the command line, where a method is text."""
    return {name: _AS_TEXT.get(hint, hint) for name, hint in typing.get_type_hints(cls).items()}


def from_dict(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return a configuration from nested plain data, where a tuple may be a list.

    Raises InputError for a name that is no field, and what ``cls`` raises.
    """
    types = field_types(cls)
    for name in values:
        if name not in types:
            raise unknown(f"option of {cls.__name__.lower()}", name, types)
    return cls(
        **{
            name: from_dict(types[name], value)
            if is_dataclass(types[name])
            else (tuple(value) if isinstance(value, list) else value)
            for name, value in values.items()
        }
    )
