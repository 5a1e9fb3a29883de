"""Steppe in other people's training loops, one thin module each; import the one that is wanted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from steppe import methods
from steppe.core.method import Method, name_of, overrides
from steppe.core.step import Step
from steppe.errors import InputError


def ready(method: Method | str) -> Method:
    """Return a method for a model that is made already; text is read as `steppe.parse` does.

    Raises InputError for what is neither, and for a method that builds what is trained.
    """
    method = methods.parse(method) if isinstance(method, str) else method
    if not isinstance(method, Method):
        raise InputError(f"method is of type {type(method).__name__}; give steppe.SAM(), say, or 'sam:rho=0.1'")
    if overrides(method, "build"):
        raise InputError(
            f"{name_of(method)} builds what is trained, several networks or branches, and the model is made "
            "already; use steppe train"
        )
    return method


def deployed(step: Step | None, model: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which the model has what the method deploys, if ``step`` is one of this model."""
    return nullcontext() if step is None or step.runtime.net is not model else step.deployed_weights()
