"""The update at the end of a step, and what undoes it."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING

from steppe.core import param_groups
from steppe.core.execution._device_checks import skips_by_itself
from steppe.core.numerics import complex_params, vector
from steppe.core.numerics.vector import Vec
from steppe.core.state.snapshot import of_training
from steppe.core.step_state import NonFinite
from steppe.errors import InputError

if TYPE_CHECKING:
    from steppe.core.runtime import Runtime


def make_update(rt: Runtime, averaged: Vec, times: int, more: bool, decoupled: Vec | None) -> None:
    """Transform and clip the mean gradient, and let the optimizer make its steps; see `Runtime.apply`."""
    step, options, optimizer = rt.step_state, rt.options, rt.optimizer
    # what the host decides needs no choice on the device
    step.decided = not rt.on_device or rt.checks.must_read(optimizer, averaged)
    if step.decided and _is_skipped(rt, more):
        raise NonFinite(step.output)
    if rt.on_device:
        rt.checks.flush(step.bad)
    grads = averaged
    for transform in options.transforms:
        grads = transform(grads, rt)
    if options.clip is not None:
        grads = vector.clip(grads, options.clip, rt.member if options.clip_each else None)
    alone = not (more or step.updates_undone or decoupled is not None)
    flag = step.bad if alone and not step.decided and skips_by_itself(optimizer) else None
    if (more or not step.decided) and flag is None and not step.updates_undone:
        step.updates_undone = True
        step.snapshots.append(of_training(rt.params, optimizer, rt.update_snapshots))
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
            rt.checks.update(optimizer, averaged, flag, first=step.decided)
        else:
            optimizer.step()
        rt.passes.updates += 1
    if decoupled is not None:
        param_groups.add_decoupled(optimizer, rt.params, decoupled)
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
