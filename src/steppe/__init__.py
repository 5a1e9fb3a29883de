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
        api = import_module("steppe.methods.api")
        if name == "__all__" or name in api.__all__:
            globals()[name] = getattr(api, name)  # a loop may look it up in each step
            return globals()[name]
    raise AttributeError(f"module 'steppe' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return [*globals(), *import_module("steppe.methods.api").__all__]
