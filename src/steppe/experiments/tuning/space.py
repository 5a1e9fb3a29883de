"""The search space: which settings of a method are searched, and their ranges.

A default range is a factor of ten to both sides of the method's default, on a logarithmic scale, cut to the values
that the method accepts. SAM's users vary rho over two decades (Foret et al. 2021, section 3; Kwon et al. 2021,
section 5); RWP's gamma and SADT's sigma depend on the network's size as much.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from steppe import methods
from steppe.config import as_method
from steppe.core.composition import ActiveWindow, parts
from steppe.core.method import Method
from steppe.errors import InputError, unknown

MAIN = ("rho", "gamma", "alpha", "sigma", "lam")  # the settings that papers tune; a method's first is the default
DECADES = 1.0  # to each side of the default
_STEPS = 40  # grid points per side on which accepted values are determined


@dataclass(frozen=True)
class Range:
    """A setting and its range; ``log`` for a logarithmic scale."""

    name: str
    low: float
    high: float
    log: bool
    default: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def space(spec: Method | str, settings: Sequence[str] = ()) -> list[Range]:
    """Return the ranges of the settings to search of a method, or of the one that a text names.

    Each of ``settings`` is a name, ``rho``, or a name with a range, ``rho=0.01..0.5``, which is logarithmic unless
    it starts at 0. By default it is the first of rho, gamma, alpha, sigma, lam that the method has.

    Raises InputError for a method without such a setting, and for a range that the method does not accept.
    """
    method: Method = as_method(spec)
    if not settings:
        main = next((name for name in MAIN if name in _numbers(method)), None)
        if main is None:
            raise InputError(
                f"method {methods.spec_of(method)!r} has none of {', '.join(MAIN)}; choose another method, or "
                "name a setting with its range, for example --settings decay=0.9..0.999"
            )
        settings = (main,)
    ranges = [_range(method, setting) for setting in settings]
    names = [r.name for r in ranges]
    if len(set(names)) != len(names):
        raise InputError(f"settings names one twice: {' '.join(settings)}; name each once")
    return ranges


def with_values(method: Method, values: Mapping[str, float]) -> Method:
    """Return a method with these settings, each set in the first of the combined methods that has it."""
    return _replaced(method, dict(values))


def _replaced(method: Method, left: dict[str, float]) -> Method:
    """Return a method with those of ``left`` that it has, which are taken out; an active window's are not set."""
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    change: dict[str, Any] = {k: _replaced(v, left) for k, v in values.items() if isinstance(v, Method)}
    return replace(method, **(change or {k: left.pop(k) for k in values if k in left}))


def _numbers(method: Method) -> dict[str, float]:
    """Return the numeric settings of a method; if two combined methods share a name, the first one's."""
    numbers: dict[str, float] = {}
    for part in parts(method):
        inner = part.method if isinstance(part, ActiveWindow) else part
        for name, value in vars(inner.resolved).items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                numbers.setdefault(name, float(value))
    return numbers


def _range(method: Method, setting: str) -> Range:
    name, equals, text = setting.partition("=")
    numbers = _numbers(method)
    if name not in numbers:
        raise unknown(f"setting of {methods.spec_of(method)}", name, numbers, "a number that can be searched")
    default = numbers[name]
    if not equals:
        if default <= 0:
            raise InputError(
                f"{name} is {default:g} by default, which has no default range; write {name}=LOW..HIGH"
            )
        return Range(name, *_accepted(method, name, default), log=True, default=default)
    ends = re.fullmatch(r"([-+.\de]+?)\.\.([-+.\de]+)", text)
    try:
        low, high = (float(end) for end in ends.groups()) if ends else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not low < high:
        raise InputError(f"settings has {setting!r}; write {name}=LOW..HIGH, for example {name}=0.01..0.5")
    for value in (low, high):
        with_values(method, {name: value})
    return Range(name, low, high, log=low > 0, default=default)


def _accepted(method: Method, name: str, default: float) -> tuple[float, float]:
    """Return the lowest and highest value within `DECADES` of the default that the method accepts."""
    ends = []
    for side in (-1, 1):
        end = default
        for i in range(1, _STEPS + 1):
            value = float(f"{default * 10 ** (side * DECADES * i / _STEPS):.3g}")
            try:
                with_values(method, {name: value})
            except InputError:
                break
            end = value
        ends.append(end)
    return ends[0], ends[1]
