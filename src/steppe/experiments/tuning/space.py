"""Which settings of a method are searched, and between which values.

A range comes from the method's own default: a factor of ten to both sides on a logarithmic scale, cut to what the
method accepts. SAM's users vary rho over two decades (Foret et al. 2021, section 3; Kwon et al. 2021, section 5),
RWP's gamma and SADT's sigma move with the size of the network as much.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from steppe import methods
from steppe.config import parse_spec
from steppe.errors import InputError, unknown

MAIN = ("rho", "gamma", "alpha", "sigma", "lam")  # what papers tune, first found first
DECADES = 1.0  # to each side of the default
_STEPS = 40  # a decade is cut to what is accepted on a grid of so many values


@dataclass(frozen=True)
class Range:
    """A setting and the values it may take; ``log`` if they are spread evenly over orders of magnitude."""

    name: str
    low: float
    high: float
    log: bool
    default: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def space(spec: str, wanted: Sequence[str] = ()) -> list[Range]:
    """Return the ranges of the settings of a method, ``spec``, that are searched.

    ``wanted`` names them: ``rho`` or, with a range of one's own, ``rho=0.01..0.5``, which is logarithmic if it
    does not begin at 0. If none is named it is the first that the method has of rho, gamma, alpha, sigma, lam.

    Raises InputError for a method without such a setting, and for a range that means nothing to the method.
    """
    if not wanted:
        found = next((name for name in MAIN if name in _numbers(spec)), None)
        if found is None:
            raise InputError(
                f"method {spec!r} has none of {', '.join(MAIN)}; choose another method, or name a setting "
                "with its range, for example --settings decay=0.9..0.999"
            )
        wanted = (found,)
    ranges = [_range(spec, one) for one in wanted]
    names = [r.name for r in ranges]
    if len(set(names)) != len(names):
        raise InputError(f"settings names one twice: {' '.join(wanted)}; name each once")
    return ranges


def spec_with(spec: str, values: Mapping[str, float]) -> str:
    """Return the method ``spec`` with these settings, each in the first of the combined methods that has it."""
    parts, left = [], dict(values)
    for part in spec.split("+"):
        name, settings = parse_spec(part)
        mine = {k: left.pop(k) for k in list(left) if k in _fields(name, settings)}
        shown = [f"{k}={_written(v)}" for k, v in (settings | mine).items()]
        parts.append(name + (":" + ",".join(shown) if shown else ""))
    return "+".join(parts)


def _written(value: Any) -> str:
    # a plus sign would combine two methods
    return f"{value:g}".replace("e+", "e") if isinstance(value, float) else json.dumps(value).strip('"')


def _fields(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's settings by name; ``start`` and the like of its window are not among them."""
    bare = methods.make(name)
    own = {f.name for f in fields(bare)}
    made = methods.make(name, **{k: v for k, v in settings.items() if k in own})
    return {f.name: getattr(made, f.name) for f in fields(made)}


def _numbers(spec: str) -> dict[str, float]:
    """Return the settings of a method that are numbers, of combined methods the first one's where two have one."""
    methods.parse(spec)
    found: dict[str, float] = {}
    for part in spec.split("+"):
        for key, value in _fields(*parse_spec(part)).items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                found.setdefault(key, float(value))
    return found


def _range(spec: str, wanted: str) -> Range:
    name, equals, text = wanted.partition("=")
    known = _numbers(spec)
    if name not in known:
        raise unknown(f"setting of {spec}", name, known, "(a number that can be searched)")
    default = known[name]
    if not equals:
        if default <= 0:
            raise InputError(f"{name} is {default:g} by default, which has no decade; write {name}=LOW..HIGH")
        return Range(name, *_accepted(spec, name, default), log=True, default=default)
    ends = re.fullmatch(r"([-+.\de]+?)\.\.([-+.\de]+)", text)
    try:
        low, high = (float(end) for end in ends.groups()) if ends else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not low < high:
        raise InputError(f"settings has {wanted!r}; write {name}=LOW..HIGH, for example {name}=0.01..0.5")
    for value in (low, high):
        methods.parse(spec_with(spec, {name: value}))
    return Range(name, low, high, log=low > 0, default=default)


def _accepted(spec: str, name: str, default: float) -> tuple[float, float]:
    """Return how far a setting goes from its default to both sides without being refused."""
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
