"""The text form of a method and its settings: ``sam:rho=0.1``."""

import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from steppe.errors import InputError

SPEC = "_spec"  # attribute of a method: the text that it was made from


def as_method(method: Any) -> Any:
    """Return the `steppe.Method` that a text names; a method is returned as it is.

    The one place where the text of a run becomes a method. Equal methods may differ in their text.

    Raises InputError for a text that names none, and for a method that no text names: records have the text.
    """
    methods = importlib.import_module("steppe.methods")  # late: configurations are read without torch
    if isinstance(method, str):
        return methods.parse(method)
    methods.spec_of(method)
    return method


def parse_spec(spec: str, what: str = "method") -> tuple[str, dict[str, Any]]:
    """Split ``name:key=value,key=value`` into name and settings; values are JSON, else text.

    Raises InputError, in which ``what`` names the kind of text, for an item that is not key=value or a key that is
    set twice.
    """
    name, colon, rest = spec.partition(":")
    settings: dict[str, Any] = {}
    if colon and not rest:
        raise InputError(f"{what} {spec!r} ends in a colon; write name:key=value or only the name")
    for part in filter(None, re.split(r",(?![^(]*\))", rest)):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{what} {spec!r}: {part!r} is not key=value; write for example sam:rho=0.1")
        key = key.strip()
        if key in settings:
            raise InputError(f"{what} {spec!r} sets {key} twice; give it once")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value.strip()
    return name.strip(), settings


def format_spec(name: str, settings: Mapping[str, Any]) -> str:
    """Return the text that `parse_spec` splits into these."""
    # a plus sign would combine two methods
    texts = [f"{k}={v if isinstance(v, str) else json.dumps(v).replace('e+', 'e')}" for k, v in settings.items()]
    return f"{name}:{','.join(texts)}" if texts else name
