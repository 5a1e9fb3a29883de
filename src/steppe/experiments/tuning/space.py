"""The search space: which settings of a method are searched, and their ranges.

A default range is a factor of ten to both sides of the method's default, on a logarithmic scale, cut to the values
that the method accepts. SAM's users vary rho over two decades (Foret et al. 2021, section 3; Kwon et al. 2021,
section 5); RWP's gamma and SADT's sigma depend on the network's size as much.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from steppe import methods
from steppe.config import parse_spec
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


def space(spec: str, settings: Sequence[str] = ()) -> list[Range]:
    """Return the ranges of the settings to search of the method ``spec``.

    Each of ``settings`` is a name, ``rho``, or a name with a range, ``rho=0.01..0.5``, which is logarithmic unless
    it starts at 0. By default it is the first of rho, gamma, alpha, sigma, lam that the method has.

    Raises InputError for a method without such a setting, and for a range that the method does not accept.
    """
    if not settings:
        main = next((name for name in MAIN if name in _numbers(spec)), None)
        if main is None:
            raise InputError(
                f"method {spec!r} has none of {', '.join(MAIN)}; choose another method, or name a setting "
                "with its range, for example --settings decay=0.9..0.999"
            )
        settings = (main,)
    ranges = [_range(spec, setting) for setting in settings]
    names = [r.name for r in ranges]
    if len(set(names)) != len(names):
        raise InputError(f"settings names one twice: {' '.join(settings)}; name each once")
    return ranges


def spec_with(spec: str, values: Mapping[str, float]) -> str:
    """Return ``spec`` with these settings, each set in the first of the combined methods that has it."""
    parts, left = [], dict(values)
    for part in spec.split("+"):
        name, settings = parse_spec(part)
        mine = {k: left.pop(k) for k in list(left) if k in _fields(name, settings)}
        texts = [f"{k}={_text(v)}" for k, v in (settings | mine).items()]
        parts.append(name + (":" + ",".join(texts) if texts else ""))
    return "+".join(parts)


def _text(value: Any) -> str:
    # a plus sign would combine two methods
    return f"{value:g}".replace("e+", "e") if isinstance(value, float) else json.dumps(value).strip('"')


def _fields(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's settings by name, without those of its active window (``start``, ``stop``, ``every``)."""
    names = {f.name for f in fields(methods.make(name))}
    method = methods.make(name, **{k: v for k, v in settings.items() if k in names})
    return {f.name: getattr(method, f.name) for f in fields(method)}


def _numbers(spec: str) -> dict[str, float]:
    """Return the numeric settings of a method; if two combined methods share a name, the first one's."""
    methods.parse(spec)
    numbers: dict[str, float] = {}
    for part in spec.split("+"):
        for key, value in _fields(*parse_spec(part)).items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                numbers.setdefault(key, float(value))
    return numbers


def _range(spec: str, setting: str) -> Range:
    name, equals, text = setting.partition("=")
    numbers = _numbers(spec)
    if name not in numbers:
        raise unknown(f"setting of {spec}", name, numbers, "a number that can be searched")
    default = numbers[name]
    if not equals:
        if default <= 0:
            raise InputError(
                f"{name} is {default:g} by default, which has no default range; write {name}=LOW..HIGH"
            )
        return Range(name, *_accepted(spec, name, default), log=True, default=default)
    ends = re.fullmatch(r"([-+.\de]+?)\.\.([-+.\de]+)", text)
    try:
        low, high = (float(end) for end in ends.groups()) if ends else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not low < high:
        raise InputError(f"settings has {setting!r}; write {name}=LOW..HIGH, for example {name}=0.01..0.5")
    for value in (low, high):
        methods.parse(spec_with(spec, {name: value}))
    return Range(name, low, high, log=low > 0, default=default)


def _accepted(spec: str, name: str, default: float) -> tuple[float, float]:
    """Return the lowest and highest value within `DECADES` of the default that the method accepts."""
    ends = []
    for side in (-1, 1):
        end = default
        for i in range(1, _STEPS + 1):
            value = float(f"{default * 10 ** (side * DECADES * i / _STEPS):.3g}")
            try:
                methods.parse(spec_with(spec, {name: value}))
            except InputError:
                break
            end = value
        ends.append(end)
    return ends[0], ends[1]
