"""What a bound method works with: model and parameters, counted passes, random streams, where training is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from steppe.core import param_groups, rng
from steppe.core.amp import MixedPrecision, upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.buffers import Buffers
from steppe.core.model_call import call_model, extract_logits, extract_loss, unwrap_model
from steppe.core.multi_network import MultiNetwork, member_of
from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.core.parallel import Sharded, SyncMode, parallelism_of
from steppe.core.schedules import ScheduleValue, TrainingProgress, value_at
from steppe.core.snapshot import CopyPool
from steppe.core.step_state import StepOutput, StepState
from steppe.errors import InputError

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.optim import Optimizer

T = TypeVar("T")
LossFunction = Callable[[Tensor, Tensor], Tensor]
GradientTransform = Callable[..., Any]
Objective = Callable[[Batch], StepOutput]


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
    """How a method is bound; see `steppe.core.method.Method.bind`."""

    loss: LossFunction | str
    transforms: Sequence[GradientTransform] = ()
    clip: float | None = None
    clip_each: bool = False
    precision: str = "fp32"
    scaler: GradScaler | None = None
    microbatch: int | None = None
    sync: SyncMode = None
    weigh: Callable[[Batch], float] = len
    steps: int | Callable[[], float] | None = None
    epoch: int | None = None
    seed: int = 0


class Ground:
    """What the verbs of a runtime stand on.

    ``net`` is the user's network below wrappers, for its structure; passes go through `forward` and
    `supervised`. ``params`` are the optimizer's trainable parameters, each once, ``owners`` the modules that
    hold them; ``rng`` draws the method's noise. ``divisible`` tells whether parts of ``net`` may be called on
    their own, which a compiled or sharded model forbids. ``looking``: a pass made now leaves no trace. ``worth``
    is how many passes of one network a pass of the model counts as. ``left`` are the gradients that a pass has
    left with the parameters.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, setup: BindOptions):
        self.model, self.optimizer, self.setup = model, optimizer, setup
        self.net, wrapper = unwrap_model(model)
        self._trainable = param_groups.Trainable(optimizer)
        self.params = self._trainable.params
        self.device = self.params[0].device
        self.precision = MixedPrecision(setup.precision, self.params[0], setup.scaler)
        self.parallel = parallelism_of(self.net, wrapper, self.params, setup.sync)
        self.parallel.reshard()
        self.owners = param_groups.owners(self.net, self.params)
        self.callable_in_parts = model in (self.net, wrapper) and not isinstance(self.parallel, Sharded)
        self.rng = rng.generator(setup.seed, "noise", self.parallel.noise, self.device)
        # a number drawn on a GPU would have to be waited for
        self._mask_rng = rng.generator(setup.seed, "masks", self.parallel.rank, torch.device("cpu"))
        self.passes = Passes()
        self.relative_cost = 1.0
        self.objective: Objective = _unset
        self._memo: dict[Hashable, Any] = {}
        self._good = torch.zeros((), dtype=torch.bool, device=self.device)
        self.weight_copies, self.undo_copies, self.buffers = CopyPool(), CopyPool(), Buffers(self.net)
        self.step_state = StepState(self.buffers.keep(), 0, 0.0, self._good)
        self.untracked = False
        self.left: Vec | None = None
        self._clean_streams = rng.capture(self.device)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the user's loss of each sample (B,), from logits of the batch or of each of its micro-batches."""
        logits = [outputs] if isinstance(outputs, Tensor) else outputs
        parts = [batch] if isinstance(outputs, Tensor) else self.parts(batch)
        with torch.no_grad():
            return torch.cat([self._each_loss(z, part.y) for z, part in zip(logits, parts, strict=True)])

    def _each_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        def one(z: Tensor, target: Tensor) -> Tensor:
            return self.loss(z[None], target[None])

        try:
            values: Tensor = torch.vmap(one)(logits, y)
        except RuntimeError:  # a loss that looks at values cannot be mapped
            values = torch.stack([one(z, target) for z, target in zip(logits, y, strict=True)])
        return values

    def forward(self, x: Any) -> Tensor:
        """Return the model's logits on a batch's inputs, with their graph."""
        return extract_logits(call_model(self.model, x))

    def supervised(self, batch: Batch) -> StepOutput:
        """Return the user's loss on a batch, with its graph."""
        if self.setup.loss == "model":
            return StepOutput(*extract_loss(call_model(self.model, batch.x, batch.y)))
        if batch.y is None:
            raise InputError(
                "the batch has no targets; give y, a mapping with 'labels', or loss='model' "
                "if the model returns its own loss"
            )
        logits = self.forward(batch.x)
        return StepOutput(self.loss(logits, batch.y), logits)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the user's loss, in at least float32 whatever the precision of the pass."""
        if not callable(self.setup.loss):
            raise InputError("this method computes losses itself; bind it with a loss function, not loss='model'")
        return self.setup.loss(upcast_to_float32(logits), y)

    def setting(self, name: str, value: ScheduleValue) -> float | list[float]:
        """Return a hyper-parameter's value in this step: one number, or one per parameter.

        It may follow a schedule, and an optimizer's parameter group may have its own under the same name.
        """
        return param_groups.per_group(self.optimizer, self.params, name, value_at(value, self.now))

    @property
    def kind(self) -> vector.TensorKind:
        """What holds for all parameters, and so for their gradients; the model's type may change."""
        return self.once(("kind", self.params[0].dtype), lambda: vector.TensorKind.of(self.params))

    @property
    def member(self) -> list[int]:
        """For each parameter the number of its network or branch, from 1; 0 if it belongs to none alone."""
        return self.once("peer", lambda: member_of(self.net, self.params))

    @property
    def now(self) -> TrainingProgress:
        """Where training is."""
        lr = float(self.optimizer.param_groups[0]["lr"])
        done = max(self.passes.steps - 1, 0)
        length = self.setup.steps
        share = length() if callable(length) else done / length if length else None
        return TrainingProgress(done, share, lr)

    def draw_mask_seed(self) -> int:
        """Return a seed for fresh dropout masks, from the step's own generator."""
        return int(torch.randint(2**62, (), generator=self._mask_rng, device=self._mask_rng.device))

    @contextmanager
    def rng_restored(self) -> Iterator[None]:
        """Return the random streams to this point on leaving, so that what follows sees the same masks."""
        states = rng.capture(self.device)
        try:
            yield
        finally:
            rng.restore(states, self.device)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` gave the first time: for facts about the network that do not change."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def count(self, *, forward: float = 0.0, backward: float = 0.0) -> None:
        """Count samples that went through the model; kept in passes of one network over the step's batch."""
        unit = (self.step_state.size or 1) / self.relative_cost
        self.passes.forward += forward / unit
        self.passes.backward += backward / unit

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators that resume needs, by name."""
        return {"noise": self.rng, "masks": self._mask_rng}

    def begin(self, batch: Batch) -> None:
        """Start a step on this batch: the unit that passes are counted in."""
        if self._trainable.renew():
            self.params = self._trainable.params
            self.owners, self._memo = param_groups.owners(self.net, self.params), {}
            self.buffers = Buffers(self.net)
        parts = self.parts(batch)
        self.step_state = StepState(self.buffers.keep(), len(batch), self.weight(batch), self._good)
        self.step_state.given = (batch, parts, self.step_state.weight)
        self.parallel.begin(self.step_state.weight, len(parts))
        self.parallel.reshard()
        if isinstance(self.net, MultiNetwork):
            several, sample = self.net, next(parts[0].split(2))
            self.relative_cost = self.once("relative_cost", lambda: several.relative_cost(sample))
        self.passes.steps += 1

    def parts(self, batch: Batch) -> list[Batch]:
        """Return the micro-batches that a batch goes through in."""
        if batch is self.step_state.given[0]:
            return self.step_state.given[1]
        size = self.setup.microbatch
        parts = batch.parts()
        return parts if size is None else [piece for part in parts for piece in part.split(size)]

    def weight(self, batch: Batch) -> float:
        """Return what a batch counts in a mean: its samples, if the user did not say otherwise."""
        if batch is self.step_state.given[0]:
            return self.step_state.given[2]
        return float(sum(map(self.setup.weigh, self.parts(batch))))

    def clear(self) -> None:
        """Leave no gradient behind."""
        for p in self.params:
            p.grad = None
        self.left = None


def _unset(batch: Batch) -> StepOutput:
    raise RuntimeError("no objective yet: call the bound step, not the runtime")
