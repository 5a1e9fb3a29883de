"""Hyper-parameters: fields of a method with their range, their help, and where they make it plain training."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from steppe.core.schedules import FunctionSchedule, Schedule, finite, format_schedule, lowest
from steppe.core.step_state import is_number, is_whole
from steppe.errors import InputError

T = TypeVar("T")
_NEVER = object()
_AMOUNT = "a step number, or a share of the training below 1"


@dataclass(frozen=True)
class Constraint:
    """What a hyper-parameter is and may be.

    Attributes:
        help: What it is, for the documents.
        minimum: The least value. A schedule is in the range if its least value is.
        above: A number below all values.
        maximum: The largest value.
        below: A number above all values.
        choices: All values.
        valid: Returns whether a value is possible, where no range describes them; ``remedy`` says which are.
        remedy: The end of the error, "give ...", instead of the one that is made from the range.
        usual: What is usual, for the error, instead of the default.
        amount: It is an amount of training: a whole number of steps or, below 1, a share of the whole.
        preset: It chooses the values of other fields, which `Method.to_dict` has in its place.
        plain_at: The value at which the method is plain training (or one of several such fields is).
        added: The method had no such field at first: at its default it is left out of `Method.to_dict`, so that
            older runs keep their names.
        plain_only_at: The value without which the method is not plain training, whatever those are.
    """

    help: str = ""
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    choices: Collection[Any] = ()
    valid: Callable[[Any], bool] | None = None
    remedy: str = ""
    usual: str = ""
    amount: bool = False
    preset: bool = False
    added: bool = False
    plain_at: Any = _NEVER
    plain_only_at: Any = _NEVER

    def holds(self, value: Any) -> bool:
        """Return whether a value of the right type is in the range; None, where it is allowed, always is."""
        if value is None or value in (self.plain_at, self.plain_only_at):
            return True
        if self.choices and value not in self.choices:
            return False
        if self.valid is not None and not self.valid(value):
            return False
        least = lowest(value) if isinstance(value, Schedule | float | int) else 0.0
        low = 0.0 if self.amount else self.minimum
        return (
            (low is None or least >= low)
            and (self.above is None or least > self.above)
            and (self.maximum is None or isinstance(value, Schedule) or value <= self.maximum)
            and (self.below is None or isinstance(value, Schedule) or value < self.below)
        )

    def range(self, whole: bool) -> str:
        """Return the values as text, for whole numbers or others; empty if all are possible."""
        if self.remedy or self.amount:
            return self.remedy or _AMOUNT
        if self.choices:
            *most, last = map(repr, self.choices)
            return f"{', '.join(most)} or {last}" if most else last
        low = "" if self.minimum is None else f"at least {self.minimum:g}"
        low = low if self.above is None else f"above {self.above:g}"
        high = "" if self.maximum is None else f"at most {self.maximum:g}"
        high = high if self.below is None else f"below {self.below:g}"
        text = f"{low} and {high}" if low and high else low or high
        if low and high and self.minimum is not None:
            text = f"from {self.minimum:g} to {high.removeprefix('at most ')}"
        if whole or not text:
            return text
        return f"a number of {text}" if text.startswith("at ") else f"a number {text}"

    def text(self, default: Any, whole: bool) -> str:
        """Return the range as the remedy of an error."""
        text = self.range(whole) or "another value"
        if self.remedy or self.amount or self.choices:
            return text
        usual = self.usual or (f"{default:g} is usual" if is_number(default) else "")
        return f"{text} ({usual})" if usual else f"{text}, or leave it out" if default is None else text


def hyper(default: Any = MISSING, help: str = "", *, kw_only: bool = False, **limits: Any) -> Any:
    """Return the field of a hyper-parameter: ``rho: ScheduleValue = hyper(0.05, "the radius", minimum=0)``.

    Its type is that of the annotation. A value outside of its `Constraint`, whose other fields are ``limits``,
    raises InputError when the method is made. The default None is the preset's value (`Method.preset_values`), or
    leaves it out. With ``kw_only`` it is set by name alone, after all others.
    """
    metadata = {"hyper": Constraint(help, **limits)}
    return field(default=default, kw_only=kw_only, metadata=metadata)


def own_first(method: Any) -> list[Field[Any]]:
    """Return the fields of a method, those that are set by name alone (of a base class) last."""
    return sorted(fields(method), key=lambda f: f.kw_only is True)


def constraint_of(f: Field[Any]) -> Constraint:
    """Return what a field may be; anything of its type if it was declared without `hyper`."""
    return f.metadata.get("hyper") or Constraint()


def per_class(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Have a function of a class computed once for each."""
    return cache(function)


@per_class
def plain_fields(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that make a method plain training, and those that all must have a value for that."""
    constants_first = sorted(fields(cls), key=lambda f: Schedule in types_of(cls)[f.name])
    constraints = {f.name: constraint_of(f) for f in constants_first}
    either = {name: c.plain_at for name, c in constraints.items() if c.plain_at is not _NEVER}
    always = {name: c.plain_only_at for name, c in constraints.items() if c.plain_only_at is not _NEVER}
    return either, always


_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Schedule: "a schedule",
}


def check_fields(method: Any, name: str) -> None:
    """Raise InputError, naming the field, unless every field has its declared type and is in its range.

    An int serves as float. A number is finite, unless the method is plain training at infinity. A function becomes
    a schedule, and a number one of Python's own of the declared type: equal methods have equal texts.
    """
    limit = method.limit or {}
    for f in fields(method):
        value, allowed = getattr(method, f.name), types_of(type(method))[f.name]
        fits = any(
            (a is float and is_number(value))
            or (a is int and is_whole(value))
            or (inspect.isclass(a) and a not in (float, int) and isinstance(value, a))
            for a in allowed
        )
        constraint = constraint_of(f)
        if not fits and Schedule in allowed and callable(value):
            value = FunctionSchedule(value)
        elif not fits:
            expected = " or ".join(_TYPES.get(a, getattr(a, "__name__", str(a))) for a in allowed)
            usual = "" if f.default is MISSING else f" (its default is {f.default!r})"
            raise InputError(f"{name}: {f.name} is {value!r}; give {expected}{usual}")
        elif is_number(value):
            if not finite(value) and value not in (constraint.plain_at, limit.get(f.name)):
                raise InputError(f"{name}: {f.name} is {value!r}; give a finite number")
            value = f.default if value == f.default else (float if float in allowed else int)(value)
        if not constraint.holds(value):
            remedy = constraint.text(f.default, int in allowed)
            raise InputError(f"{name}: {f.name} is {getattr(method, f.name)!r}; give {remedy}")
        if value is not getattr(method, f.name):
            object.__setattr__(method, f.name, value)


@per_class
def types_of(cls: type) -> dict[str, tuple[Any, ...]]:
    """Return the types that each field may have."""
    hints = typing.get_type_hints(cls)
    return {k: typing.get_args(v) if isinstance(v, types.UnionType) else (v,) for k, v in hints.items()}


def as_data(value: Any) -> Any:
    """Return a value as JSON has it: methods as `Method.to_dict`, schedules and what else JSON lacks as text."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Schedule):
        return format_schedule(value)
    if isinstance(value, Mapping):
        return {str(k): as_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(v) for v in value]
    if value is None or isinstance(value, str | bool) or (is_number(value) and finite(value)):
        return value
    return without_address(repr(value))


def as_text(data: Any) -> str:
    """Return the data of `Method.to_dict` as a call: ``SAM(rho=0.05, ascents=1)``."""
    if not isinstance(data, Mapping) or "class" not in data:
        return repr(data)
    settings = ", ".join(f"{k}={as_text(v)}" for k, v in data.items() if k != "class")
    return f"{data['class']}({settings})"


def without_address(text: str) -> str:
    """Return the text of an object without its place in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
