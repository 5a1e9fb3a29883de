"""Methods in other libraries' training loops: one module for each library."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from steppe import methods
from steppe.core.method import Method, name_of, overrides
from steppe.core.step import Step
from steppe.errors import InputError


def ready(method: Method | str) -> Method:
    """Return the method, parsed as by `steppe.parse` if it is text.

    Raises InputError for any other type, and for a method of several networks, which builds the model itself.
    """
    method = methods.parse(method) if isinstance(method, str) else method
    if not isinstance(method, Method):
        raise InputError(f"method is of type {type(method).__name__}; give steppe.SAM(), say, or 'sam:rho=0.1'")
    if overrides(method, "build"):
        raise InputError(
            f"{name_of(method)} trains several networks or branches, which it builds itself; use steppe train"
        )
    return method


def deployed(step: Step | None, model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which the model has the deployed weights; it does nothing if ``step`` trains another."""
    return nullcontext() if step is None or step.runtime.net is not model else step.deployed_weights()
