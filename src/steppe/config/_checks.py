"""Checks of single fields."""

import math
import typing
from typing import Any

from steppe.errors import InputError


def check_positive(name: str, value: float | None, least: float = 0.0, strict: bool = True) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < least or (strict and value == least):
        raise InputError(f"{name} is {value}; give a number {'above' if strict else 'of at least'} {least:g}")


def check_choice(name: str, value: str, choices: tuple[str, ...], *others: str) -> None:
    if value not in choices:
        raise InputError(
            f"{name} is {value!r}; choose one of {', or '.join((', '.join(filter(None, choices)), *others))}"
        )


def check_choices(config: Any, prefix: str = "") -> None:
    """Raise InputError unless every field whose type lists its values has one of them."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is typing.Literal:
            check_choice(prefix + name, getattr(config, name), typing.get_args(hint))
