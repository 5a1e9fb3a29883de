"""From a name to a subject: ``sam``, ``sam:rho=0.1``, ``my_module:MyMethod``, ``my_file.py:MyMethod``."""

import inspect
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import torch

from steppe import __version__, methods
from steppe.config import parse_spec
from steppe.config.user_code import import_module
from steppe.core.method import Method, make_checked
from steppe.errors import InputError, unknown
from steppe.testing.subjects import OurMethod, Subject
from steppe.testing.third_party import ThirdParty, is_two_step


def subjects_of(names: Sequence[str]) -> list[Subject]:
    """Return the subjects of these names, all built-in methods if there are none.

    A name is a built-in method, with settings if any, or ``module:Class`` (``module:Class:key=value``), a
    `steppe.Method` or an optimizer. Modules of the current folder can be imported; a module may be a file's path.

    Raises InputError for a name that cannot be imported or is neither.
    """
    return [_subject(name) for name in (names or methods.names())]


def _subject(name: str) -> Subject:
    match = re.fullmatch(r"([A-Za-z_][\w.]*|[^:]+\.py):([A-Za-z_]\w*)(?::(.+))?", name)
    if match is None or match[1] in methods.METHODS:
        return OurMethod(methods.parse(name), name)
    module, attribute, options = import_module(match[1]), match[2], match[3]
    if not hasattr(module, attribute):
        raise unknown(f"name in {match[1]}", attribute, [n for n in dir(module) if not n.startswith("_")])
    kind: Any = getattr(module, attribute)
    settings = parse_spec(f"{attribute}:{options}")[1] if options else {}
    if isinstance(kind, Method) and not settings:
        return OurMethod(kind, name)
    if inspect.isclass(kind) and issubclass(kind, Method):
        try:
            return OurMethod(make_checked(kind, kind.__name__, settings), name)
        except TypeError as error:
            raise InputError(f"{name} cannot be made: {error}; give its settings, {name}:key=value") from None
    if inspect.isclass(kind) and (is_two_step(kind) or issubclass(kind, torch.optim.Optimizer)):
        return ThirdParty(kind, name, settings=settings)
    raise InputError(
        f"{name} is neither a steppe.Method nor an optimizer; give a class that derives from steppe.Method, or "
        "from torch.optim.Optimizer with first_step and second_step or step(closure)"
    )


def versions_of(subjects: Sequence[Subject], device: str) -> dict[str, str]:
    """Return the versions of Python, torch and the packages of the subjects."""
    versions = {
        "steppe": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
    }
    if device == "cuda":
        versions["GPU"] = torch.cuda.get_device_name()
    packages = {s.kind.__module__.split(".")[0] for s in subjects if isinstance(s, ThirdParty)}
    installed = packages_distributions()
    for package in sorted(packages - {"torch"}):
        for distribution in installed.get(package, [package])[:1]:
            try:
                versions[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
    return versions
