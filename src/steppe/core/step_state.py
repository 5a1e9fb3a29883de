"""One step in progress: what it works on, whether all was finite so far, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.buffers import BufferCopy
from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.core.snapshot import CopyPool
from steppe.errors import InputError


@dataclass
class StepOutput:
    """What a step gives back: mean ``loss`` () and ``logits`` (B, classes) of this process's clean pass.

    A method that cuts the batch (RWP with two batches) gives those of its first samples.

    ``skipped`` is True if a non-finite loss or gradient, on any process, undid the step. For micro-batches
    whose logits differ in shape ``logits`` is a list, and it is empty for a model that returns only its loss.
    """

    loss: Tensor
    logits: Any
    skipped: bool = False


class NonFinite(ArithmeticError):  # noqa: N818 - it is a signal from a pass to the step, never shown to a user
    """A loss or a gradient is not finite, here or on another process; carries the clean pass's output."""

    def __init__(self, out: StepOutput):
        super().__init__("non-finite loss or gradient")
        self.out = out


class StepState:
    """The state that lives as long as one step.

    ``before`` are the buffers as the step found them; ``size`` and ``weight`` are the batch's samples and its
    weight in means; ``first`` is the output of the first pass; ``bad`` tells whether a value was not finite on
    this process; ``group`` collects gradients while groups of samples have perturbations of their own; ``given``
    is the batch, its micro-batches and its weight.
    """

    def __init__(self, before: BufferCopy, size: int, weight: float, bad: Tensor):
        self.size, self.weight, self.bad = size, weight, bad
        self.first: StepOutput | None = None
        self.group: GradientAccumulator | None = None
        self.given: tuple[Batch | None, list[Batch], float] = (None, [], 0.0)
        self._undo: UpdateSnapshot | None = None
        self._before = before

    @property
    def output(self) -> StepOutput:
        """The first pass's output."""
        assert self.first is not None
        return self.first

    def will_go_on(
        self, params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, copies: CopyPool
    ) -> None:
        """Remember weights and optimizer before the first of several updates."""
        if self._undo is None:
            self._undo = UpdateSnapshot(params, optimizer, copies)

    def restore(self) -> None:
        """Return weights, optimizer and running statistics to what they were when the step began."""
        if self._undo is not None:
            self._undo.restore()
        self._before.restore()

    def close(self) -> None:
        """Let go of what was kept for the way back."""
        self._before.close()
        if self._undo is not None:
            self._undo.close()
        self._undo, self.given = None, (None, [], 0.0)


@dataclass
class GradientAccumulator:
    """The mean of the groups' gradients of one step, each of them up to its update, and of what goes beside."""

    total: Vec
    beside: Vec | None = None
    share: float = 1.0
    open: bool = True

    def begin(self, share: float) -> None:
        """Start a group that has this share of the batch."""
        self.share, self.open = share, True

    def collect(self, grads: Vec, beside: Vec | None, one: bool) -> None:
        """Take in a group's gradient; raises InputError if its method makes more than one update."""
        if not (one and self.open):
            raise InputError("m needs a method with one update per step, and this one makes more; leave m out")
        self.total, self.open = vector.add(self.total, vector.scale(grads, self.share)), False
        if beside is not None:
            own = vector.scale(beside, self.share)
            self.beside = own if self.beside is None else vector.add(self.beside, own)


class UpdateSnapshot:
    """What weights and optimizer were when this was made; `back` returns to it, in place."""

    def __init__(self, params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, copies: CopyPool):
        self._optimizer, self._copies = optimizer, copies
        self._state = {p: _remembered(held) for p, held in optimizer.state.items()}
        self._groups = [_remembered(group) for group in optimizer.param_groups]
        held = [v for values in (*self._state.values(), *self._groups) for v in values.values()]
        self._values = copies.make([*params, *(v for v in held if isinstance(v, Tensor))])

    def restore(self) -> None:
        """Return to then: what was a tensor is that tensor again, and has its values."""
        state = self._optimizer.state
        for key in [k for k in state if k not in self._state]:
            del state[key]
        now = [*(state[key] for key in self._state), *self._optimizer.param_groups]
        for held, before in zip(now, (*self._state.values(), *self._groups), strict=True):
            held.clear()
            held.update(before)
        self._values.restore()

    def close(self) -> None:
        """Let go of it."""
        self._copies.release(self._values)


def _remembered(held: dict[str, Any]) -> dict[str, Any]:
    """Return copies of numbers and the like; parameters and tensors, whose values are kept apart, as they are."""
    return {k: v if isinstance(v, Tensor) or k == "params" else copy.deepcopy(v) for k, v in held.items()}
