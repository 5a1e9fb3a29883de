"""One step in progress: what it works on, whether all was finite so far, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steppe import vec
from steppe.batch import Batch
from steppe.buffers import Kept
from steppe.errors import InputError
from steppe.vec import Vec


@dataclass
class Out:
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

    def __init__(self, out: Out):
        super().__init__("non-finite loss or gradient")
        self.out = out


class Course:
    """The state that lives as long as one step.

    ``before`` are the buffers as the step found them; ``size`` and ``weight`` are the batch's samples and its
    weight in means; ``first`` is the output of the first pass; ``bad`` tells whether a value was not finite on
    this process; ``group`` collects gradients while groups of samples have perturbations of their own; ``given``
    is the batch, its micro-batches and its weight.
    """

    def __init__(self, before: Kept, size: int, weight: float, bad: Tensor):
        self.size, self.weight, self.bad = size, weight, bad
        self.first: Out | None = None
        self.group: Group | None = None
        self.given: tuple[Batch | None, list[Batch], float] = (None, [], 0.0)
        self._undo: Undo | None = None
        self._before = before

    @property
    def output(self) -> Out:
        """The first pass's output."""
        assert self.first is not None
        return self.first

    def will_go_on(self, params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Remember weights and optimizer before the first of several updates."""
        if self._undo is None:
            self._undo = Undo(params, optimizer)

    def back(self) -> None:
        """Return weights, optimizer and running statistics to what they were when the step began."""
        if self._undo is not None:
            self._undo.back()
        self._before.back()

    def close(self) -> None:
        """Let go of what was kept for the way back."""
        self._before.close()
        self._undo, self.given = None, (None, [], 0.0)


@dataclass
class Group:
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
        self.total, self.open = vec.add(self.total, vec.scale(grads, self.share)), False
        if beside is not None:
            own = vec.scale(beside, self.share)
            self.beside = own if self.beside is None else vec.add(self.beside, own)


class Undo:
    """What weights and optimizer were when this was made; `back` returns to it, in place."""

    def __init__(self, params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer):
        self.params, self.optimizer = params, optimizer
        self.weights = [p.detach().clone() for p in params]
        self.state = {
            p: {k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in held.items()}
            for p, held in optimizer.state.items()
        }
        self.groups = [
            {k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]

    def back(self) -> None:
        """Return to then."""
        with torch.no_grad():
            for p, weight in zip(self.params, self.weights, strict=True):
                p.copy_(weight)
            for key in [k for k in self.optimizer.state if k not in self.state]:
                del self.optimizer.state[key]
            for key, before in self.state.items():
                _return(self.optimizer.state[key], before)
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(settings)


def _return(held: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [n for n in held if n not in before]:
        del held[name]
    for name, value in before.items():
        now = held.get(name)
        if isinstance(now, Tensor) and isinstance(value, Tensor) and now.shape == value.shape:
            now.copy_(value)
        else:
            held[name] = value
