"""How much of a step its passes take, so that what is left can be told: it is little, and lost in whole steps.

Two steps of the same work differ by some per cent on a busy machine. What a method adds to its passes is often
less; timed within each step it differs by some per cent of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.modules import module

from steppe.bench.timing import TimingSpread, now, per_step, spread


class Timed:
    """Steps, timed with their passes: calls of modules from without any, and backward passes.

    Not ``watched``, the steps alone are timed: to know when a pass ends on a GPU, the step would have to wait.
    """

    def __init__(self, step: Callable[[], object], steps: int, *, watched: bool):
        self._step, self._steps, self._watch = step, steps, watched
        self._depth, self._entered, self._inside = 0, 0.0, 0.0
        self.beside: list[float] = []

    def __call__(self) -> float:
        """Return how long one of so many steps takes, and note what of it was beside its passes."""
        if not self._watch:
            return per_step(self._step, self._steps)
        self._inside = 0.0
        with self._watched():
            took = per_step(self._step, self._steps)
        self.beside.append(took - self._inside / self._steps)
        return took

    @contextmanager
    def _watched(self) -> Iterator[None]:
        hooks = (
            module.register_module_forward_pre_hook(lambda *_: self._enter()),
            module.register_module_forward_hook(lambda *_: self._leave(), always_call=True),
        )
        backward, grad = Tensor.backward, torch.autograd.grad
        try:
            with (
                mock.patch.object(Tensor, "backward", self._pass(backward)),
                mock.patch.object(torch.autograd, "grad", self._pass(grad)),
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
            self._inside += now() - self._entered

    def _pass(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            self._enter()
            try:
                return call(*given, **named)
            finally:
                self._leave()

        return timed


def above(own: list[float], plain: list[float], backward: float, floor: float) -> TimingSpread:
    """Return what a step does beside its passes over what as many plain steps do, as a share of its floor.

    Args:
        own: Seconds beside the passes of a step of the method.
        plain: Those of a plain step.
        backward: Backward passes of the method's step: as many plain steps are in its floor.
        floor: Seconds that its passes take in plain training.
    """
    part = backward * median(plain)
    return spread([one - part for one in own], [floor] * len(own))
