"""steppe: train networks into flat minima, with any method in any training loop, and compare them fairly."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.methods.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public names, and torch, when one is first used: until then a command starts at once."""
    if name == "__all__" or not name.startswith("_"):
        if find_spec(f"steppe.{name}") is not None:
            return import_module(f"steppe.{name}")
        if name in (names := _public_names()):
            globals()[name] = names[name]  # a loop may look it up in each step
            return names[name]
        if name == "__all__":
            return list(names)
    raise AttributeError(f"module 'steppe' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return [*globals(), *_public_names()]


def _public_names() -> dict[str, Any]:
    public = vars(import_module("steppe.methods.api"))
    return {name: value for name, value in public.items() if not name.startswith("_")}
