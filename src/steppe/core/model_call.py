"""Call a model, whatever it is wrapped in, takes or returns."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steppe.errors import InputError


def unwrap_model(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """Return the user's own network below torch.compile and DDP, and the DDP wrapper if there is one."""
    replicas = None
    while True:
        if isinstance(model, DistributedDataParallel):
            replicas, model = model, model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model, replicas


def reuses_outputs(model: nn.Module) -> bool:
    """Return whether a model is compiled so that its next call overwrites what it returned (CUDA graphs)."""
    while True:
        config: Any = getattr(model, "get_compiler_config", None)
        if callable(config) and (config() or {}).get("triton.cudagraphs"):
            return True
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return False
        model = inner


def call_model(model: nn.Module, x: Any, y: Any = None) -> Any:
    """Call a model on a tensor, ``model(x)``, or on named inputs, ``model(**x)``; with targets if given.

    Raises InputError for a model that needs more than its inputs, such as targets or inputs by name.
    """
    if y is not None:
        return model(**x, labels=y) if isinstance(x, Mapping) else model(x, y)
    try:
        return model(**x) if isinstance(x, Mapping) else model(x)
    except TypeError as error:
        if "required positional argument" not in str(error):
            raise
        if isinstance(x, tuple | list):
            named = inspect.signature(unwrap_model(model)[0].forward).parameters
            inputs = ", ".join(f"{name!r}: ..." for name in list(named)[: len(x)])
            raise InputError(
                f"the model cannot be called on one {type(x).__name__} ({error}); give several inputs by name, "
                f"step({{{inputs}}}, y)"
            ) from error
        raise InputError(
            f"the model cannot be called on the inputs alone ({error}), as evaluation does; let forward take no "
            "targets, as forward(x, y=None)"
        ) from error


class NoLogitsError(InputError):
    """What a model returned has no logits, and a method needs them."""


def extract_logits(output: Any) -> Tensor:
    """Return the logits of what a model returned: a tensor, or their ``logits``; raises NoLogitsError without."""
    if isinstance(output, Tensor):
        return output
    logits = _entry(output, "logits")
    if not isinstance(logits, Tensor):
        raise NoLogitsError(
            f"the model returned {type(output).__name__} without logits; return a tensor or something "
            "with .logits, or bind with loss='model' if it returns its own loss, or with a steppe.ModelLoss"
        )
    return logits


def _entry(output: Any, name: str) -> Any:
    """Return an entry of a mapping, else an attribute, None without."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def call_for_logits(model: nn.Module, x: Any) -> Tensor:
    """Return a model's logits on a tensor, or on named inputs."""
    return extract_logits(call_model(model, x))


def extract_loss(output: Any) -> tuple[Tensor, Tensor]:
    """Return the loss that a model returned itself, and its logits (empty if it gives none).

    Accepted are a 0-dimensional tensor, something with ``loss`` (and ``logits``), a mapping of losses, which are
    summed, and a tuple that starts with the loss and goes on with logits or something with ``logits``.

    Raises InputError for anything else.
    """
    loss, logits = output, None
    if isinstance(output, tuple) and not hasattr(output, "loss"):
        loss, logits = output[0], output[1] if len(output) > 1 else None
        if not isinstance(logits, Tensor):
            logits = _entry(logits, "logits")
    elif isinstance(output, Mapping) and "loss" not in output:
        loss = sum(output.values())
    elif not isinstance(output, Tensor):
        loss, logits = _entry(output, "loss"), _entry(output, "logits")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError(
            f"loss='model' needs a model that returns its loss; this one returned {type(output).__name__}. "
            "Give the labels with the batch, or a loss function to bind"
        )
    return loss.reshape(()), logits if isinstance(logits, Tensor) else loss.detach().new_empty(0)


def with_weights(plain: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Load weights and buffers into a network and return it; raises InputError if they do not fit."""
    try:
        plain.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the deployed weights are not those of a {type(plain).__name__} ({reason})") from None
    return plain
