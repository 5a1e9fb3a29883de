"""State of one training step: the batch, a non-finite flag, and the snapshots that roll it back."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from steppe.core.batch import Batch
from steppe.core.data_parallel import SyncMode
from steppe.core.numerics import outputs, vector
from steppe.core.numerics.vector import Vec
from steppe.core.state.snapshot import Snapshot
from steppe.core.user_loss import ModelLoss, require_loss
from steppe.errors import InputError

LossFunction = Callable[[Tensor, Tensor], Tensor] | ModelLoss
GradientTransform = Callable[..., Any]


@dataclass
class StepOutput:
    """What a step returns: mean ``loss`` () and ``logits`` (B, classes) of this process's clean pass.

    A method that cuts the batch (RWP with two batches) returns those of its first samples.

    ``skipped`` is True if a non-finite loss or gradient, on any process, undid the step. On a GPU to ask for it is
    to wait for the step; ``skip_flag`` is then a tensor there, 1 if it was skipped. For micro-batches whose logits
    differ in shape ``logits`` is a list, and it is empty for a model that returns only its loss.
    """

    loss: Tensor
    logits: Any
    skip_flag: bool | Tensor = False

    @property
    def skipped(self) -> bool:
        """Whether the step was undone."""
        self.skip_flag = bool(self.skip_flag)
        return self.skip_flag


@dataclass
class Passes:
    """Counted work: passes of one network, forward and backward, over the step's batch, and optimizer updates.

    A pass of several networks at once counts as many; one of branches over one trunk by its multiply-adds.
    """

    forward: float = 0.0
    backward: float = 0.0
    updates: int = 0
    steps: int = 0

    def per_step(self) -> tuple[float, float, float]:
        """Return (forward, backward, updates) per step."""
        n = max(self.steps, 1)
        return self.forward / n, self.backward / n, self.updates / n


@dataclass(frozen=True)
class BindOptions:
    """How a method is bound: the options of `steppe.core.method.Method.bind`, which documents them.

    ``transforms`` are here the functions of these methods. A configuration sets those that it has a field for.
    """

    loss: LossFunction | str
    transforms: Sequence[GradientTransform] = ()
    clip: float | None = None
    clip_each: bool = False
    outputs: str | None = None
    precision: str = "fp32"
    scaler: GradScaler | None = None
    microbatch: int | None = None
    m: int | str | None = None
    sync: SyncMode = None
    weigh: Callable[[Batch], float] = len
    steps: int | Callable[[], float] | None = None
    epoch: int | None = None
    graph: bool = False
    decay_start: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_loss(self.loss)
        clip = self.clip is None or (is_number(self.clip) and self.clip > 0)
        steps: Any = self.steps
        # len(data) / batch * epochs is one, too
        schedulable = steps is None or callable(steps) or (is_number(steps) and 1 <= steps < math.inf)
        if is_number(self.epoch) and self.epoch % 1 == 0:  # type: ignore[operator]
            object.__setattr__(self, "epoch", int(self.epoch))  # type: ignore[arg-type]
        for name, holds, remedy in (
            ("outputs", self.outputs in (None, *outputs.FORMS), f"{', '.join(map(repr, outputs.FORMS))}, or None"),
            ("clip", clip, "a number above 0, or None"),
            ("microbatch", self.microbatch is None or is_count(self.microbatch), "at least 1 sample, or None"),
            (
                "m",
                self.m is None or self.m == "micro" or is_count(self.m),
                "a number of samples, 'micro', or None",
            ),
            ("weigh", callable(self.weigh), "a function of a batch"),
            (
                "steps",
                schedulable,
                "the number of steps of the training, a function that returns its share",
            ),
            ("epoch", self.epoch is None or is_count(self.epoch), "the number of steps of an epoch, or None"),
            (
                "decay_start",
                self.decay_start is None or (is_number(self.decay_start) and 0 <= self.decay_start < 1),
                "a share of the training, from 0 to below 1, or None",
            ),
            ("seed", is_whole(self.seed), "a whole number"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; give {remedy}")
        if self.m is not None and self.sync not in (None, "local"):
            raise InputError(f"m is {self.m!r} and sync is {self.sync!r}, which cannot be combined; set only one")


def is_number(value: Any) -> bool:
    """Return whether this is a real number, also one of NumPy; True and False are none."""
    return not isinstance(value, bool) and isinstance(value, Real)


def is_whole(value: Any) -> bool:
    """Return whether this is a whole number, also one of NumPy."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_count(value: Any) -> bool:
    """Return whether this is a whole number of at least 1."""
    return is_whole(value) and bool(value >= 1)


class NonFinite(ArithmeticError):  # noqa: N818 - it is a signal from a pass to the step, never shown to a user
    """A loss or a gradient is not finite, on this process or another; carries the clean pass's output."""

    def __init__(self, out: StepOutput):
        super().__init__("non-finite loss or gradient")
        self.out = out


@dataclass
class StepState:
    """The state of one step.

    ``batch`` goes through in ``micro_batches``; it has ``size`` samples and counts ``weight`` in means. ``bad`` is
    True (or 1), on the device, if a value of this process was not finite. ``snapshots`` undo the step, on the
    device unless the host found (``decided``) that the last update was of finite values. ``first`` is the
    output of the first pass. ``averaged`` is the gradient of the last pass if that ``averages`` it over the
    processes already. ``group`` collects gradients while groups of samples have perturbations of their own.
    """

    bad: Tensor
    batch: Batch | None = None
    micro_batches: Sequence[Batch] = ()
    weight: float = 0.0
    size: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)
    updates_undone: bool = False
    decided: bool = False
    first: StepOutput | None = None
    averages: bool = False
    averaged: Vec | None = None
    group: "GradientAccumulator | None" = None

    @property
    def output(self) -> StepOutput:
        """The first pass's output; NaN and no logits if a pass before it was not finite."""
        return self.first or StepOutput(torch.full((), math.nan), torch.empty(0))


@dataclass
class GradientAccumulator:
    """The mean of the groups' gradients in one step, and of their ``decoupled`` terms (see `Runtime.apply`)."""

    total: Vec
    decoupled: Vec | None = None
    weight: float = 1.0
    expects_update: bool = True

    def begin(self, weight: float) -> None:
        """Start a group that counts this much in the mean of the batch."""
        self.weight, self.expects_update = weight, True

    def collect(self, grads: Vec, decoupled: Vec | None, one: bool) -> None:
        """Add a group's gradient; raises InputError if its method makes more than one update."""
        if not (one and self.expects_update):
            raise InputError("m needs a method with one update per step, and this one makes more; leave m out")
        self.total = vector.add(self.total, vector.scale(grads, self.weight))
        self.expects_update = False
        if decoupled is not None:
            own = vector.scale(decoupled, self.weight)
            self.decoupled = own if self.decoupled is None else vector.add(self.decoupled, own)
