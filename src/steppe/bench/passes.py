"""Time of a step outside its forward and backward passes: small, and lost in the noise of whole steps.

Two runs of the same step differ by some per cent on a busy machine, and a method often adds less than that to its
passes. Timed within each step, the addition itself is known to some per cent.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.modules import module

from steppe.bench.timing import TimingSpread, now, per_step, spread


class TimedSteps:
    """Times ``steps`` steps, and within them the passes: outermost calls of modules, and backward passes.

    ``outside`` has the seconds of a mean step outside its passes, one entry per call. With ``hooked`` False the
    steps alone are timed: on a GPU, knowing when a pass ends would mean waiting for it.
    """

    def __init__(self, step: Callable[[], object], steps: int, *, hooked: bool):
        self._step, self._steps, self._hooked = step, steps, hooked
        self._depth, self._entered, self._in_passes = 0, 0.0, 0.0
        self.outside: list[float] = []

    def __call__(self) -> float:
        """Return the mean seconds of a step."""
        if not self._hooked:
            return per_step(self._step, self._steps)
        self._in_passes = 0.0
        with self._hooks():
            seconds = per_step(self._step, self._steps)
        self.outside.append(seconds - self._in_passes / self._steps)
        return seconds

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        hooks = (
            module.register_module_forward_pre_hook(lambda *_: self._enter()),
            module.register_module_forward_hook(lambda *_: self._leave(), always_call=True),
        )
        backward, grad = Tensor.backward, torch.autograd.grad
        try:
            with (
                mock.patch.object(Tensor, "backward", self._as_pass(backward)),
                mock.patch.object(torch.autograd, "grad", self._as_pass(grad)),
            ):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._entered = now()

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._in_passes += now() - self._entered

    def _as_pass(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter()
            try:
                return call(*args, **kwargs)
            finally:
                self._leave()

        return timed


def overhead(outside: list[float], plain: list[float], backward: float, floor: float) -> TimingSpread:
    """Return the time outside passes, minus that of as many plain steps, as a share of the floor.

    Args:
        outside: Seconds outside passes of a step of the method.
        plain: Those of a plain step.
        backward: Backward passes of the method's step: its floor has as many plain steps.
        floor: Seconds that its passes take in plain training.
    """
    plain_share = backward * median(plain)
    return spread([seconds - plain_share for seconds in outside], [floor] * len(outside))
