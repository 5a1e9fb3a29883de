"""What a step consists of: its passes, its update, and the values of hyper-parameters in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from steppe.core import param_groups, user_loss
from steppe.core.batch import Batch, join_logits
from steppe.core.execution._device_checks import skips_by_itself
from steppe.core.numerics import complex_params, vector
from steppe.core.numerics.vector import Vec
from steppe.core.optimizers.joint import groups_of, states_of, with_inner
from steppe.core.schedules import ScheduleValue, TrainingProgress, value_at
from steppe.core.state.snapshot import of_training
from steppe.core.step_state import NonFinite, StepOutput
from steppe.errors import InputError

if TYPE_CHECKING:
    from steppe.core.runtime import Runtime

T = TypeVar("T")
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


def check_first_pass(
    rt: Runtime, batch: Batch, parts: Sequence[Batch], logits: Sequence[Tensor], grads: Vec
) -> None:
    """Find buffers that the first pass of a step registered; raises InputError for gradients a step cannot use."""
    rt.buffers.refresh()
    param_groups.require_dense(grads)
    if len(parts) > 1 or len(batch) < rt.step_state.size:
        user_loss.require_additive(rt, batch, parts, logits)


def lasting(rt: Runtime, output: Tensor) -> Tensor:
    """Return an output that the model's next call does not overwrite."""
    return output.clone() if rt.outputs_reused else output


def for_optimizer(rt: Runtime, averaged: Vec) -> Vec:
    """Return a mean gradient as the optimizer gets it: transformed and clipped."""
    options, grads = rt.options, averaged
    for transform in options.transforms:
        grads = transform(grads, rt)
    if options.clip is not None:
        grads = vector.clip(grads, options.clip, rt.member if options.clip_each else None)
    return grads


def optimizers_of(rt: Runtime) -> list[torch.optim.Optimizer]:
    """Return the optimizer and those that it wraps, which keep state of their own."""
    return rt.once("optimizers", partial(with_inner, rt.optimizer))


def clear_frozen(optimizer: torch.optim.Optimizer) -> None:
    """Set the gradients of frozen parameters to None: the optimizer would use an old one in every step."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not p.requires_grad:
                p.grad = None


def make_update(rt: Runtime, averaged: Vec, times: int, more: bool, decoupled: Vec | None) -> None:
    """Transform and clip the mean gradient, and let the optimizer make its steps; see `Runtime.apply`."""
    step, optimizer = rt.step_state, rt.optimizer
    parts = optimizers_of(rt) if more or rt.on_device else ()
    # what the host decides needs no choice on the device
    step.decided = not rt.on_device or rt.checks.must_read(parts, averaged)
    if step.decided and _is_skipped(rt, more):
        raise NonFinite(step.output)
    if rt.on_device:
        rt.checks.flush(step.bad)
    grads = for_optimizer(rt, averaged)
    alone = not (more or step.updates_undone or decoupled is not None)
    flag = step.bad if alone and not step.decided and skips_by_itself(parts) else None
    if (more or not step.decided) and flag is None and not step.updates_undone:
        step.updates_undone = True
        step.snapshots.append(of_training(rt.params, states_of(parts), groups_of(parts), rt.update_snapshots))
    rt.reshard()
    for remaining in reversed(range(times)):
        # some optimizers write into the gradients that they get
        fresh = vector.clone(grads) if remaining or (more and any(map(is_, grads, averaged))) else grads
        if rt.in_grad is None or not all(map(is_, fresh, rt.in_grad)):
            if rt.leaves is not rt.params:
                fresh = complex_params.like_leaves(fresh, rt.params)
            for p, g in zip(rt.leaves, fresh, strict=True):
                p.grad = g
            rt.in_grad = None
        if rt.on_device:
            rt.checks.update(optimizer, parts, averaged, flag, first=step.decided)
        else:
            optimizer.step()
        rt.passes.updates += 1
    if decoupled is not None:
        param_groups.add_decoupled(optimizer, rt.params, decoupled)
    torch.clear_autocast_cache()  # within a user's autocast, later passes would use the weights before the update
    if more:  # else the step ends, which clears them
        rt.clear()


def _is_skipped(rt: Runtime, more: bool) -> bool:
    """Return whether the host finds that the update must not take place."""
    step = rt.step_state
    if not rt.on_device:
        checked = rt.alone and rt.parallel.checks_every_pass
        return not checked and rt.parallel.should_skip_update(step.bad, more)
    if rt.recorder is not None and rt.recorder.recording:
        name = type(rt.optimizer).__name__
        raise InputError(f"graph is True, and {name} keeps numbers on the host; leave graph out")
    rt.checks.flush(step.bad)
    return bool(step.bad)


def progress(rt: Runtime) -> TrainingProgress:
    """Return where training is; raises InputError where a step that may become a graph must not ask."""
    if rt.recorder is not None and not rt.recorder.on_host:
        raise InputError(
            "graph is True, and the method asks where training is, which a graph would not; ask it within "
            "rt.decide(lambda: ...) or rt.number(lambda: ...), or leave graph out"
        )
    lr = param_groups.learning_rate(rt.optimizer) if rt.recorder is None else rt.recorder.lr
    done, length = max(rt.passes.steps - 1, 0), rt.options.steps
    share = length() if callable(length) else done / length if length else None
    now = TrainingProgress(done, share, lr, rt.options.decay_start)
    return now if rt.window is None else replace(now, window=rt.window(now))


def in_window(rt: Runtime, ask: Callable[[], T]) -> Callable[[], T]:
    """Return a function that asks in the window of the method that is active now, whenever it is called."""
    window = rt.window

    def ask_in_window() -> T:
        outer, rt.window = rt.window, window
        try:
            return ask()
        finally:
            rt.window = outer

    return ask_in_window


def setting(rt: Runtime, name: str, value: ScheduleValue) -> Any:
    """Return a hyper-parameter's value in this step; see `Runtime.setting`.

    A scheduled value that is not 0 is a tensor while a step becomes a graph.
    """
    own = any(name in group for group in rt.optimizer.param_groups)
    if not own and isinstance(value, float) and 0 <= value < math.inf:
        return value

    def present() -> Any:
        at = value if isinstance(value, float | int) else value_at(value, rt.now)
        return param_groups.setting(rt.optimizer, rt.params, name, at)

    if rt.recorder is None:
        return present()
    if own or isinstance(value, float | int) or rt.decide(lambda: present() == 0):
        return rt.recorder.answer(present)
    return rt.number(present)
