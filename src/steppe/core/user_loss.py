"""The user's loss: its value, its state, and whether a batch in parts has the whole batch's gradient."""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from steppe.core._nested import AmbiguousError
from steppe.core.batch import Batch, MicroBatches, join_logits
from steppe.core.model_call import call_model, extract_loss
from steppe.core.numerics.losses import per_sample
from steppe.core.numerics.outputs import Outputs, outputs_of
from steppe.core.state import rng
from steppe.core.state.snapshot import evaluation_mode
from steppe.errors import InputError

CHECKED_STEPS = 10  # in which a loss is checked to be a mean; it may be one on a first batch only


@dataclass(frozen=True)
class ModelLoss:
    """A loss that calls the model itself: ``function(model, x, y)``, for `bind`'s ``loss``.

    It returns the loss, or (loss, output), or something with ``loss`` (and ``logits``); y is None for a batch
    without targets. Methods that compare outputs need the output too, as logits or something with ``.logits``.
    For models of several outputs, losses of inner layers, and training without targets.
    """

    function: Callable[[nn.Module, Any, Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"ModelLoss has {self.function!r}; give a function of model, x and y")

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function, whose name and source records have."""
        return self.function


def calls_model(loss: Any) -> bool:
    """Return whether a loss is of the model's call: 'model' or a `ModelLoss`."""
    return isinstance(loss, ModelLoss) or (isinstance(loss, str) and loss == "model")


def own_loss(loss: Any, model: nn.Module, x: Any, y: Any) -> Any:
    """Return what a model returns that is called by its own loss, or by a `ModelLoss`."""
    return loss.function(model, x, y) if isinstance(loss, ModelLoss) else call_model(model, x, y)


def form_of(rt: "_Runtime", logits: Tensor, batch: Batch) -> Outputs:
    """Return what the outputs are: ``outputs`` of `bind`, or what the loss and the targets of a batch say."""

    def of_targets(y: Any) -> Tensor:
        with evaluation_mode(rt.net, buffers=False):  # a graph needs them
            return extract_loss(own_loss(rt.options.loss, rt.net, batch.x, y))[0]

    with rt.rng_restored(), torch.no_grad():
        return outputs_of(rt.options.loss, logits, batch.y, rt.options.outputs, of_targets)


def modules_of(loss: Any) -> list[nn.Module]:
    """Return the modules that a loss consists of: itself, that of its method, or those of a ``partial``."""
    if isinstance(loss, ModelLoss):
        return modules_of(loss.function)
    if isinstance(loss, partial):
        return [module for part in (loss.func, *loss.args, *loss.keywords.values()) for module in modules_of(part)]
    return [m for m in (loss, getattr(loss, "__self__", None)) if isinstance(m, nn.Module)]


def require_loss(loss: Any) -> None:
    """Raise InputError unless this is a loss function, or 'model'."""
    if calls_model(loss) or (callable(loss) and not isinstance(loss, type)):
        return
    remedy = "an instance of that class" if isinstance(loss, type) else "a function"
    raise InputError(f"loss is {loss!r}; give {remedy}, or 'model' if the model returns its own loss")


def function_of(loss: Any) -> Any:
    """Return a loss that is a function of logits and targets; raises InputError for one that calls the model."""
    if not callable(loss):
        raise InputError(
            "this method computes losses itself; bind it with a function of logits and targets, not loss='model' "
            "or a ModelLoss"
        )
    return loss


def loss_value(loss: Any, logits: Tensor, y: Any) -> Tensor:
    """Return the loss of a batch (); raises InputError unless it is one real number with a gradient."""
    try:
        result = function_of(loss)(logits, y)
    except Exception as error:
        require_targets(error, loss, logits, y)
        raise
    if not isinstance(result, Tensor):
        raise InputError(f"the loss returned {type(result).__name__}; return a tensor, the mean over the batch")
    if result.numel() != 1:
        raise InputError(f"the loss returned shape {tuple(result.shape)}; return the mean (reduction='mean')")
    if not result.is_floating_point():
        raise InputError(f"the loss returned {result.dtype}; return a real floating-point number")
    if torch.is_grad_enabled() and logits.requires_grad:
        require_graph(result)
    return result if result.ndim == 0 else result.reshape(())


def require_targets(error: Exception, loss: Any, logits: Tensor, y: Any) -> None:
    """Raise InputError if a loss raised this error because of the targets' type or shape."""
    function_of(loss)
    if isinstance(error, InputError | torch.OutOfMemoryError):
        return
    if isinstance(y, Tensor):
        kind, remedy = f"{y.dtype} and shape {tuple(y.shape)}", _other_targets(loss, logits, y)
    else:
        kind, remedy = f"type {type(y).__name__}", "tensors" * isinstance(error, TypeError | AttributeError)
    if remedy:
        message = str(error).strip().partition("\n")[0]
        raise InputError(f"the loss does not take y of {kind} ({message}); give {remedy}") from error


def _other_targets(loss: Any, logits: Tensor, y: Tensor) -> str:
    """Return the same targets in another type or shape that the loss takes, as code; empty if it takes none."""
    with suppress(Exception), torch.no_grad():
        loss(logits, y)
        return ""  # a loss that fails only sometimes does not fail because of y
    others: dict[str, Callable[[], Tensor]] = {
        "y.long()": lambda: y.long(),
        "y.squeeze(1)": lambda: y.squeeze(1),
        "y.squeeze(1).long()": lambda: y.squeeze(1).long(),
        "y.float()": lambda: y.to(logits.dtype),
        "y.unsqueeze(1)": lambda: y.unsqueeze(1),
        "y.unsqueeze(1).float()": lambda: y.unsqueeze(1).to(logits.dtype),
    }
    for text, make in others.items():
        with suppress(Exception), torch.no_grad():
            if bool((make().reshape(y.shape) == y).all()):  # no class is rounded
                loss(logits, make())
                return text
    return ""


def of_samples(loss: Any, logits: Tensor, batch: Batch) -> Tensor:
    """Return what each sample (B,) of a batch adds to the loss."""
    loss = function_of(loss)
    if isinstance(batch.y, Tensor):
        return per_sample(loss, logits, batch.y)
    return torch.stack([loss(z[None], one.y) for z, one in zip(logits, batch.split(1), strict=True)])


def require_graph(loss: Tensor) -> None:
    """Raise InputError for a loss that no gradient can be taken of, or if gradients are off."""
    if not (loss.requires_grad or torch.is_grad_enabled()):
        raise InputError("gradients are off; call the step outside of torch.no_grad and step.deployed_weights")
    if not loss.requires_grad:
        raise InputError("the loss has no gradient; compute it from the logits, without detach or item")


def require_weights(weigh: Any, parts: Sequence[Batch], total: float, processes: int) -> None:
    """Raise InputError unless the parts of a batch have weights that a mean can be taken with."""
    # with several processes, one may have no sample that counts
    if not (math.isfinite(total) and (total > 0 or (total == 0 and processes > 1))):
        raise InputError(f"weigh returned {total:g} for the batch; return a finite number above 0")
    if weigh is len and (processes > 1 or len(parts) > 1):
        for part in parts:
            part.require_countable()


class _Runtime(Protocol):
    """What the check uses of a `steppe.Runtime`."""

    options: Any
    net: nn.Module
    passes: Any
    callable_in_parts: bool

    def loss(self, logits: Tensor, y: Any) -> Tensor: ...
    def preserve_state(self) -> AbstractContextManager[None]: ...
    def rng_restored(self) -> AbstractContextManager[None]: ...


def require_additive(rt: _Runtime, batch: Batch, parts: Sequence[Batch], logits: Sequence[Tensor]) -> None:
    """Raise InputError if the gradients of the ``parts`` of a batch do not add up to that of the whole batch.

    The model's own loss is compared on two parts, in evaluation mode and in the first step only: it takes passes.
    """
    if callable(rt.options.loss):
        if any(len(z) != len(part) for z, part in zip(logits, parts, strict=True)):
            return  # the rows of two views, say, cannot be cut and joined by sample
        with rt.preserve_state():
            require_mean(lambda z, part: rt.loss(z, part.y), parts, logits, rt.options.weigh, batch=batch)
    elif rt.passes.steps == 1 and rt.callable_in_parts:
        with rt.preserve_state(), evaluation_mode(rt.net):

            def own(_: Tensor, part: Batch) -> Tensor:
                return extract_loss(own_loss(rt.options.loss, rt.net, part.x, part.y))[0]

            require_mean(own, parts[:2], logits[:2], rt.options.weigh, tolerance=1e-2)


def require_mean(
    loss: Callable[[Tensor, Batch], Tensor],
    parts: Sequence[Batch],
    logits: Sequence[Tensor],
    weigh: Callable[[Batch], float] = len,
    tolerance: float = 1e-4,
    batch: Batch | None = None,
) -> None:
    """Raise InputError if the loss of a batch is not the weighted mean of its parts' losses.

    The parts are joined, unless ``batch`` is what was cut into them. Parts that cannot be joined, or only one, are
    compared with their halves. Not checked are a loss with state or random draws of its own, parts that can
    neither be cut nor joined, and a loss that raises an exception on more or fewer samples than training has.
    Targets that may be joined in two ways are refused.
    """
    whole, mean, scale = 0.0, 0.0, 0.0
    before = _draws(logits[0].device)
    pieces = list(zip(logits, parts, strict=True))
    if batch is None or len(batch.parts()) > 1:
        batch = MicroBatches(parts)
    with torch.no_grad():
        joined = _joined(pieces, batch, loss)
    with suppress(Exception), torch.no_grad():
        z, batch = joined or max(pieces, key=lambda piece: len(piece[1]))
        if batch in parts:
            if len(batch) == 1:
                return
            first, second = batch.halves()
            middle = len(z) * len(first) // len(batch)
            pieces = [(z[:middle], first), (z[middle:], second)]
        weights = [float(weigh(piece)) for _, piece in pieces]
        results = [loss(z, batch), *(loss(*piece) for piece in pieces)]
        tolerance = max(tolerance, 2 * _rounding(results))
        (value, *each), again = map(float, results), float(loss(z, batch))
        # a loss may draw only sometimes
        if value == again and _draws(z.device) == before and sum(weights) > 0:
            counted = [(w, v) for w, v in zip(weights, each, strict=True) if w]
            whole, mean = value, sum(w * v for w, v in counted) / sum(weights)
            scale = max(map(abs, (value, *(v for _, v in counted))))  # terms of both signs may leave a mean near 0
    if math.isfinite(whole) and not abs(whole - mean) <= max(tolerance * scale, 1e-6):
        raise InputError(
            f"the loss of {len(batch)} samples is {whole:g}, and the mean over {len(pieces)} parts {mean:g}; "
            "give a loss that is a mean over samples (reduction='mean'), or weigh=, or the whole batch at "
            "once (no microbatch, m, list of parts or method that cuts it)"
        )


def _rounding(values: Sequence[Tensor]) -> float:
    """Return the relative rounding error of losses, which may be of half precision though returned as float32."""
    for dtype in (torch.bfloat16, torch.float16):
        if all(bool(v.to(dtype) == v) for v in values):
            return torch.finfo(dtype).eps
    return torch.finfo(values[0].dtype).eps


def _draws(device: torch.device) -> list[Any]:
    """Return the state of all random numbers that a loss may draw."""
    own: Any = np.random.get_state(legacy=True)
    return [random.getstate(), own[1].tobytes(), own[2], *(s.numpy().tobytes() for s in rng.capture(device))]


def _joined(
    pieces: Sequence[tuple[Tensor, Batch]], batch: Batch, loss: Callable[[Tensor, Batch], Tensor]
) -> tuple[Tensor, Batch] | None:
    """Return the logits of all parts and the batch, None if there is one part, or they cannot be joined."""
    z = join_logits([z for z, _ in pieces])
    if len(pieces) == 1 or not isinstance(z, Tensor):
        return None
    try:
        loss(z, batch)  # joins only what it takes: the inputs need no clear form
    except AmbiguousError:
        raise
    except Exception:  # the loss may be undefined for more samples than training has
        return None
    return z, batch
