"""Forward and backward passes of a step: of one batch, of its micro-batches, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steppe.core import param_groups, user_loss
from steppe.core.batch import Batch, join_logits
from steppe.core.step_state import StepOutput

if TYPE_CHECKING:
    from steppe.core.runtime import Runtime

Objective = Callable[[Batch], StepOutput]
Mask = Sequence[bool] | None
_NOTHING = nullcontext()
# what Tensor.backward() calls after checks that take a tenth of a small network's pass; it is not public
_engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)
_backward: Any = getattr(_engine, "run_backward", None)


def make_passes(
    rt: Runtime, parts: Sequence[Batch], objective: Objective, whole: float, where: Mask, last: bool
) -> tuple[StepOutput, list[Tensor]]:
    """Make the passes of several parts, of several processes, or of some parameters only."""
    # a backward pass written in Python may use parameters unseen, so the first graph is whole and is inspected
    may = where is not None and rt.callable_in_parts and not rt.memo.get("graph", True)
    off = [p for p, w in zip(rt.leaves, where or (), strict=True) if not w] if may else []
    # an objective of a method may call networks past the wrapper that averages
    simple = last and where is None and objective == rt.supervised
    share = rt.parallel.share_of_mean(rt) if simple and rt.memo.get("graph") is False else None
    rt.step_state.averages = share is not None
    losses, logits = [], []
    for number, part in enumerate(parts, 1):
        weight = rt.options.weigh(part) / whole if whole else 0.0
        sync = _NOTHING if share is not None and number == len(parts) else rt.parallel.no_sync()
        with sync, param_groups.switched_off(off):
            out = make_pass(rt, part, objective, weight, share, inspect=where is not None or simple)
        losses.append(out.loss if weight == 1 else out.loss * weight)
        logits.append(out.logits)
    mean = losses[0] if len(parts) == 1 else torch.stack(losses).sum()
    return StepOutput(mean, join_logits(logits)), logits


def make_pass(
    rt: Runtime,
    part: Batch,
    objective: Objective,
    weight: float,
    share: Tensor | None = None,
    inspect: bool = False,
) -> StepOutput:
    """Make a forward and a backward pass, whose loss counts ``weight``; return its output without graph.

    ``share`` () is a further factor of the gradient, for processes that average it in the pass.
    """
    if rt.outputs_reused:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    with rt.precision.autocast() if rt.precision.reduced else _NOTHING:
        out = objective(part)
    loss, logits = out.loss, out.logits
    if not loss.requires_grad:
        user_loss.require_graph(loss)
    if inspect:
        rt.once("graph", partial(param_groups.has_custom_backward, loss))
    if not weight and logits.requires_grad:
        # a part that does not count, such as one without labels, whose mean is NaN
        loss = 0.0 * logits.sum()
    factor = weight if rt.alone else weight * rt.parallel.loss_weight()
    scaled = loss if factor == 1 else loss * factor
    if share is not None:
        scaled = scaled * share
    if rt.precision.scaler is not None:
        scaled = rt.precision.scaled(scaled)
    if _backward is not None and type(scaled) is Tensor and not scaled.dim():
        _backward((scaled,), (torch.ones_like(scaled),), False, False, (), True, True)
    else:
        scaled.backward()  # type: ignore[no-untyped-call]
    # logits that are a view of a weight would change with it at the next update
    return StepOutput(
        loss.detach(), logits.detach().clone() if logits._is_view() else lasting(rt, logits.detach())
    )


def lasting(rt: Runtime, output: Tensor) -> Tensor:
    """Return an output that the model's next call does not overwrite."""
    return output.clone() if rt.outputs_reused else output
