"""Where training is, and the values that hyper-parameters have there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from steppe.core import param_groups
from steppe.core.schedules import ScheduleValue, TrainingProgress, value_at
from steppe.errors import InputError

if TYPE_CHECKING:
    from steppe.core.runtime import Runtime


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


def setting(rt: Runtime, name: str, value: ScheduleValue) -> Any:
    """Return a hyper-parameter's value in this step; see `Runtime.setting`.

    A scheduled value that is not 0 is a tensor while a step becomes a graph.
    """
    own = any(name in group for group in rt.optimizer.param_groups)
    if not own and isinstance(value, float) and 0 <= value < math.inf:
        return value
    window = rt.window

    def present() -> Any:
        outer, rt.window = rt.window, window
        try:
            at = value if isinstance(value, float | int) else value_at(value, rt.now)
            return param_groups.setting(rt.optimizer, rt.params, name, at)
        finally:
            rt.window = outer

    if rt.recorder is None:
        return present()
    if own or isinstance(value, float | int) or rt.decide(lambda: present() == 0):
        return rt.recorder.answer(present)
    return rt.number(present)
