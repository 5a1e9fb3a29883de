"""The text form of a method and its settings: ``sam:rho=0.1``."""

import json
import re
from typing import Any

from steppe.errors import InputError


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
