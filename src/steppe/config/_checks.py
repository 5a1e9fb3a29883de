"""Checks of single fields."""

import math

from steppe.errors import InputError


def check_positive(name: str, value: float | None, least: float = 0.0, strict: bool = True) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < least or (strict and value == least):
        raise InputError(f"{name} is {value}; give a number {'above' if strict else 'of at least'} {least:g}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
