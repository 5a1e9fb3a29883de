"""steppe: train networks into flat minima, with any method in any training loop, and compare them fairly."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.api.comparison import compare as compare
    from steppe.api.diagnosis import diagnose as diagnose
    from steppe.api.tuning import tune as tune
    from steppe.methods.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public names, and torch, when one is first used: until then a command starts at once."""
    if name in _CALLS:
        globals()[name] = getattr(import_module(_CALLS[name]), name)
        return globals()[name]
    if name == "__all__" or not name.startswith("_"):
        if find_spec(f"steppe.{name}") is not None:
            return import_module(f"steppe.{name}")
        if name in (names := _public_names()):
            globals()[name] = names[name]  # a loop may look it up in each step
            return names[name]
        if name == "__all__":
            return [*names, *_CALLS]
    raise AttributeError(f"module 'steppe' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return [*globals(), *_public_names(), *_CALLS]


def _public_names() -> dict[str, Any]:
    public = vars(import_module("steppe.methods.api"))
    return {name: value for name, value in public.items() if not name.startswith("_")}


# each in a module of its own, which is imported with its first use
_CALLS = {"compare": "steppe.api.comparison", "tune": "steppe.api.tuning", "diagnose": "steppe.api.diagnosis"}
