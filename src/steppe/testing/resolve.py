"""From what a user writes to what is checked: ``sam``, ``sam:rho=0.1``, ``my_module:MyMethod``."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import ModuleType
from typing import Any

import torch

from steppe import __version__, methods
from steppe.config import parse_spec
from steppe.core.method import Method, make_checked
from steppe.errors import InputError, unknown
from steppe.testing.subjects import OurMethod, Subject
from steppe.testing.third_party import ThirdParty


def subjects_of(names: Sequence[str]) -> list[Subject]:
    """Return what the names name, all built-in methods if there are none.

    A name is a built-in method, with settings if wanted, or ``module:Class`` (``module:Class:key=value``), a
    `steppe.Method` or an optimizer. Modules of the current folder are found too.

    Raises InputError for what cannot be imported or is neither.
    """
    return [_subject(name) for name in (names or methods.names())]


def _subject(name: str) -> Subject:
    outside = re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?::(.+))?", name)
    if outside is None or outside[1] in methods.METHODS:
        return OurMethod(methods.parse(name), name)
    module, found = _imported(outside[1]), outside[2]
    if not hasattr(module, found):
        raise unknown(f"name in {outside[1]}", found, [n for n in dir(module) if not n.startswith("_")])
    thing = getattr(module, found)
    settings = parse_spec(f"{found}:{outside[3]}")[1] if outside[3] else {}
    return _made(thing, name, settings)


def _made(thing: Any, name: str, settings: dict[str, Any]) -> Subject:
    if isinstance(thing, Method) and not settings:
        return OurMethod(thing, name)
    if inspect.isclass(thing) and issubclass(thing, Method):
        try:
            return OurMethod(make_checked(thing, thing.__name__, settings), name)
        except TypeError as error:
            raise InputError(f"{name} cannot be made: {error}; give its settings, {name}:key=value") from None
    two_step = all(callable(getattr(thing, step, None)) for step in ("first_step", "second_step"))
    if inspect.isclass(thing) and (two_step or issubclass(thing, torch.optim.Optimizer)):
        return ThirdParty(thing, name, settings=settings)
    raise InputError(
        f"{name} is neither a steppe.Method nor an optimizer; give a class that derives from steppe.Method, or "
        "from torch.optim.Optimizer with first_step and second_step or step(closure)"
    )


def _imported(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                f"there is no module {name} here or installed; give a method of `steppe list`, or module:Class"
            ) from None
        raise InputError(f"{name} cannot be imported: it needs {error.name}; install that") from None
    except Exception as error:
        raise InputError(f"{name} cannot be imported: {type(error).__name__}: {error}; mend it first") from None


def versions_of(subjects: Sequence[Subject], device: str) -> dict[str, str]:
    """Return the versions of Python, torch and the packages that the subjects are from."""
    found = {
        "steppe": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
    }
    if device == "cuda":
        found["GPU"] = torch.cuda.get_device_name()
    tops = {s.kind.__module__.split(".")[0] for s in subjects if isinstance(s, ThirdParty)}
    installed = packages_distributions()
    for top in sorted(tops - {"torch"}):
        for distribution in installed.get(top, [top])[:1]:
            try:
                found[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
    return found
