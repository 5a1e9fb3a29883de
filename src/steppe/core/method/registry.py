"""Methods by name, and how one is made from its name or from text; `steppe.methods` enters its own."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from steppe.config import parse_spec, user_code
from steppe.config.docstrings import docstring
from steppe.config.method_spec import SPEC, format_spec
from steppe.core import schedules
from steppe.core.composition import ActiveWindow, On
from steppe.core.method.contract import Method, make_checked
from steppe.core.method.hyperparameters import as_data, constraint_of, own_first, types_of
from steppe.errors import InputError, unknown

METHODS: dict[str, Callable[..., Method]] = {}
WINDOW = ("start", "stop", "every", "tail", "spread")
TRIED: set[str] = set()  # those of which docs/results has a trial


def names() -> list[str]:
    """Return the names of all methods, in the order of the list."""
    return list(METHODS)


def make(name: str, **settings: object) -> Method:
    """Make a method by name: ``make("sam", rho=0.1)``.

    ``start``, ``stop``, ``tail``, ``every`` and ``spread`` limit it to some steps (see `ActiveWindow`). A schedule
    may be text, ``rho="linear(0,0.1,0.5)"``.

    Raises InputError for an unknown name or setting, with the nearest ones.
    """
    if (entry := _entry(name)) is None:
        if set(name) & set(":+"):
            raise InputError(f"unknown method {name!r}; steppe.parse reads settings and combinations, make a name")
        raise unknown("method", name, METHODS)
    own = inspect.signature(entry).parameters
    read = {k: (isinstance(v, str) and schedules.parse_schedule(v)) or v for k, v in settings.items()}
    window = {k: v for k, v in read.items() if k in WINDOW and k not in own}
    method = make_checked(entry, name, {k: v for k, v in read.items() if k not in window})
    return make_checked(partial(ActiveWindow, method), name, window) if window else method


def _entry(name: str) -> Callable[..., Method] | None:
    """Return what makes the methods of this name: an entry of the list, or a class that the user gave."""
    if name in METHODS or not user_code.is_registered("method", name):
        return METHODS.get(name)
    cls = user_code.get("method", name)
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise InputError(f"method {name!r} is {cls!r:.60}; name a class that derives from steppe.Method")
    return cls


def split_name(spec: str) -> tuple[str, dict[str, Any]]:
    """Split the text of one method into its name, which may be ``module:Class``, and its settings."""
    name = _own_name(spec)
    return parse_spec(spec) if name is None else (name, parse_spec(f"method{spec[len(name) :]}")[1])


def _own_name(spec: str) -> str | None:
    """Return the ``module:Class`` that the text of one method starts with, if it does."""
    reference = user_code.reference_in(spec)
    return None if reference is None or reference.partition(":")[0] in METHODS else reference


def names_in(spec: str) -> list[str]:
    """Return the names of the methods that a text combines, without their settings."""
    return [_own_name(one) or one.partition(":")[0] for one in spec.split("+")]


def parse(spec: str) -> Method:
    """Make a method from text: ``sam``, ``sam:rho=0.1``, or ``sam:rho=0.1+gc`` for a combination.

    ``module:Class``, with settings after a further colon, is a class that the user gave.

    Raises InputError as `make` does, and for a pair that cannot be combined.
    """
    parts = []
    for one in spec.split("+"):
        name, settings = split_name(one)
        if ":" in name and _entry(name) is None:
            raise InputError(
                f"unknown method {name!r}; name your class on the command line (--methods {name}, or --code "
                f"{name} of diagnose and export), or enter it in steppe.methods.METHODS, see docs/how-to/method.md"
            )
        parts.append(make(name, **settings))
    method = parts[-1]
    for rule in reversed(parts[:-1]):
        try:
            method = On(rule, method)
        except InputError as error:
            raise InputError(f"method {spec!r}: {error}") from None
    vars(method)[SPEC] = spec
    return method


def spec_of(method: Method, explicit: Collection[str] = ()) -> str:
    """Return the text that `parse` makes this method from: the one that it was made from, else a short one.

    The short one has the settings that differ from the defaults, and those named in ``explicit``.

    Raises InputError for what is no method, and for a method that no text names: its class is not listed, or it
    has a function as schedule.
    """
    if not isinstance(method, Method):
        raise InputError(f"method is {method!r}; give a method, or its name with settings such as sam:rho=0.1")
    if SPEC not in vars(method):
        try:
            text = _text(method, explicit)
            same = parse(text).to_dict() == method.to_dict()
        except (InputError, LookupError):  # LookupError: a function in the list has other parameters
            same = False
        if not same:
            raise InputError(
                f"method is {method!r}, which no text names, and a run's records need one; enter its class in "
                "steppe.methods.METHODS, and schedule by linear, cosine or with-lr"
            )
        vars(method)[SPEC] = text
    return str(vars(method)[SPEC])


def _text(method: Method, explicit: Collection[str]) -> str:
    if isinstance(method, On):
        return f"{_text(method.rule, explicit)}+{_text(method.base, explicit)}"
    window = isinstance(method, ActiveWindow)
    inner = method.method if isinstance(method, ActiveWindow) else method
    name = label(inner)
    if (listed := _entry(name)) is None:
        raise unknown("method", name, METHODS)
    settings: dict[str, Any] = {}
    for part, entry in ((inner, listed), *([(method, ActiveWindow)] if window else [])):
        defaults = inspect.signature(entry).parameters
        for f in fields(part):
            value = getattr(part, f.name)
            if not isinstance(value, Method) and (f.name in explicit or value != defaults[f.name].default):
                schedule = isinstance(value, schedules.Schedule)
                settings[f.name] = schedules.format_schedule(value) if schedule else value
    return format_spec(name, settings)


def controls_of(method: Method, decay_start: float | None = None, among: Collection[Method] = ()) -> list[str]:
    """Return the names of a method's controls, those in ``among`` in their spelling there.

    A method that is active in some steps has controls that are active in the same steps; one in the tail of the
    training has itself, in as many steps spread evenly. ``decay_start`` is the share of the training after which
    the learning rate decays.
    """
    same = {json.dumps(other.to_dict(), sort_keys=True): spec_of(other) for other in among}
    names = _controls(method, decay_start)
    for i, name in enumerate(names):
        with suppress(InputError):  # a user's method may name what is not in the list
            key = json.dumps(parse(name).to_dict(), sort_keys=True) if ":" in name else ""
            names[i] = same.get(key, name)
    return names


def _controls(method: Method, decay_start: float | None) -> list[str]:
    with suppress(InputError):  # a function as schedule has no name
        if evenly := _spread_evenly(method, decay_start):
            return [spec_of(evenly)]
        if isinstance(method, ActiveWindow):
            return [
                name if name == "plain" else spec_of(replace(method, method=parse(name)))
                for name in method.method.controls
            ]
        if isinstance(method, On):
            return _controls_of_parts(method.rule, method.base, decay_start)
    return list(method.controls)


def _controls_of_parts(rule: Method, base: Method, decay_start: float | None) -> list[str]:
    """Return the controls of each of two combined methods, with the other kept."""
    names: list[str] = []
    for part, other in ((rule, base), (base, rule)):
        for name in _controls(part, decay_start):
            control = name
            with suppress(InputError):  # not all can be combined
                control = spec_of(other if name == "plain" else parse(f"{name}+{spec_of(other)}"))
            names += [control] if control not in names else []
    return names


def _spread_evenly(method: Method, decay_start: float | None) -> Method | None:
    """Return a method whose parts in the tail are spread evenly over the training; None if it has none."""
    if isinstance(method, On):
        parts = [_spread_evenly(part, decay_start) for part in (method.rule, method.base)]
        return On(parts[0] or method.rule, parts[1] or method.base) if any(parts) else None
    if not isinstance(method, ActiveWindow) or method.tail is None:
        return None
    tail = method.tail
    if isinstance(tail, str):
        if decay_start is None:
            return None
        tail = 1 - decay_start
    share = round(tail * (1 / method.every if method.spread is None else method.spread), 12)
    return replace(method, tail=None, every=1, spread=share)


def label(method: Method) -> str:
    """Return a method's name in the list, the name of its class if it is not in the list."""
    label = user_code.name_of("method", type(method)) or type(method).__name__
    for name, entry in METHODS.items():
        fixed = entry.keywords if isinstance(entry, partial) else {}
        cls: object = entry.func if isinstance(entry, partial) else entry
        # a later entry that fixes more settings is more specific
        if cls is type(method) and all(getattr(method, k) == v for k, v in fixed.items()):
            label = name
    return label


def card(name: str) -> str:
    """Return a method's card: equation, paper, code, cost, limits, differences, values to start from."""
    if (entry := _entry(name)) is None:
        raise unknown("method", name, METHODS)
    cls = entry.func if isinstance(entry, partial) else entry
    if name not in METHODS:
        return docstring(cls)
    return docstring(sys.modules[cls.__module__])


def summary(name: str) -> str:
    """Return the first sentence of a method's card."""
    return next(iter(card(name).splitlines()), "")  # a script need not have a card


def settings(name: str) -> list[tuple[str, str, str]]:
    """Return the name, default, and help with the possible values, of all that `make` takes for a method."""
    method = make(name)
    entries: list[tuple[type, Mapping[str, Any]]] = [(type(method), vars(method))]
    entries.append((ActiveWindow, {f.name: f.default for f in fields(ActiveWindow)}))
    rows: dict[str, tuple[str, str, str]] = {}
    for cls, values in entries:
        for f in own_first(cls):
            kinds, constraint = types_of(cls)[f.name], constraint_of(f)
            if f.name in rows or "hyper" not in f.metadata:
                continue
            allowed = "True or False" if bool in kinds else constraint.range(int in kinds and float not in kinds)
            allowed += " or a schedule" if allowed and schedules.Schedule in kinds else ""
            text = "; ".join(filter(None, (constraint.help, allowed)))
            rows[f.name] = f.name, repr(as_data(values[f.name])), text
    return list(rows.values())


@dataclass(frozen=True)
class MethodFacts:
    """A method's row in a table.

    ``cost`` is the most that a step takes (forward / backward / updates), ``keeps`` its state between steps,
    ``status`` 'tried' if docs/results has a trial of it, else 'checked': restated, and conforming; '-' for one
    that a script has entered.
    """

    name: str
    cost: str
    keeps: str
    source: str
    status: str
    summary: str


def row(name: str) -> MethodFacts:
    """Return a method's row."""
    method = make(name)
    cost = "/".join(f"{n:g}" for n in method.cost) if method.cost else "varies"
    keeps = getattr(method.state_type, "content", "-")
    paper = re.search(r"^Paper +(.*)$", card(name), re.MULTILINE)
    dated = re.match(r"(?!none)(.*?\b(?:19|20)\d\d)\b", paper[1] if paper else "")
    own = not type(method).__module__.startswith("steppe.")
    status = "-" if own else "tried" if name in TRIED else "checked"
    return MethodFacts(name, cost, keeps, dated[1] if dated else "-", status, summary(name))
