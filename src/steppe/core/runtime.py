"""What a method may do: take a gradient, evaluate at other weights, apply an update.

Rules that this file keeps, so that no method can break them: weights are restored by copy into the same storage;
running statistics and the RNG advance in the clean pass only; noise comes from the step's own generators;
gradients are averaged over micro-batches and processes exactly, and never carry a loss scale; passes are counted;
a non-finite value anywhere stops the step on every process before it reaches the weights.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steppe.core import param_groups, user_loss
from steppe.core.amp import MixedPrecision, upcast_to_float32
from steppe.core.batch import Batch, join_logits
from steppe.core.data_parallel import Sharded, parallelism_of
from steppe.core.model_call import call_model, extract_logits, extract_loss, unwrap_model
from steppe.core.multi_network import MultiNetwork, member_of
from steppe.core.numerics import complex_params, vector
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.core.schedules import ScheduleValue, TrainingProgress, value_at
from steppe.core.state import rng
from steppe.core.state.param_state import ParamState
from steppe.core.state.snapshot import Buffers, SnapshotPool
from steppe.core.state.weight_average import WeightAverage
from steppe.core.step_state import BindOptions, LossFunction, NonFinite, Passes, StepOutput, StepState
from steppe.errors import InputError

__all__ = ["BindOptions", "LossFunction", "Objective", "Passes", "Runtime", "StepOutput"]

T = TypeVar("T")
Objective = Callable[[Batch], StepOutput]


class Runtime:
    """What one bound method works with.

    Passes:
        ``grad``, ``outputs`` (logits without a graph), ``forward``, ``supervised``, ``loss``, ``losses``;
        ``objective``, the method's own; ``at`` and ``preserve_state``, the contexts of passes after the clean one.
    Gradients:
        ``shared`` and ``all_reduce_mean`` over processes; ``apply``, the update.
    Numbers:
        ``setting``, a hyper-parameter's value in this step; ``momentum`` of the optimizer; ``now``, where training
        is; ``rng``, the generator of the method's noise; ``draw_mask_seed`` and ``rng_restored``, for dropout
        masks; ``options`` of `bind`.
    Model:
        ``model`` as it was bound; ``net``, the network below torch.compile and DDP; ``params``, the optimizer's
        trainable parameters, each once, complex ones as real views (..., 2), and for each of them ``owners``, its
        module, and ``member``, the number of its network; ``buffers``; ``device``; ``callable_in_parts``: whether
        modules of ``net`` may be called on their own, which a compiled or sharded model forbids; ``parallel``, the
        processes.
    Accounts:
        ``weight`` of a batch in means; ``count`` of samples that passed outside of ``grad`` and ``outputs``, into
        ``passes``; ``once``, a cache; ``untracked``: whether a pass made now leaves statistics and RNG unchanged.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BindOptions):
        self.model, self.optimizer, self.options = model, optimizer, options
        self.net, wrapper = unwrap_model(model)
        self._leaves = param_groups.trainable(optimizer)
        self._with_state = [self.net, *user_loss.modules_of(options.loss)]
        param_groups.require_trainable(self._with_state, optimizer, self._leaves)
        self.params = complex_params.real_views(self._leaves)
        self.device = self.params[0].device
        self.precision = MixedPrecision(options.precision, self.params[0], options.scaler)
        self.parallel = parallelism_of(self.net, wrapper, self.params, options.sync)
        self.parallel.reshard()
        self.owners = param_groups.owners(self.net, self.params)
        self.callable_in_parts = model in (self.net, wrapper) and not isinstance(self.parallel, Sharded)
        self.rng = rng.generator(options.seed, "noise", self.parallel.noise_id, self.device)
        # a number drawn on a GPU would have to be waited for
        self._mask_rng = rng.generator(options.seed, "masks", self.parallel.rank, torch.device("cpu"))
        self.passes = Passes()
        self.relative_cost = 1.0  # of a pass of the model, in passes of one network
        self.objective: Objective = self.supervised  # until the step sets its method's
        self.untracked = False
        self._memo: dict[Hashable, Any] = {}
        self._good = torch.zeros((), dtype=torch.bool, device=self.device)
        self._weight_snapshots, self._update_snapshots = SnapshotPool(), SnapshotPool()
        self.buffers = Buffers(*self._with_state)
        self.step_state = StepState(self.buffers.snapshot(), self._good, None, [], 0.0)
        self._in_grad: Vec | None = None  # the tensors that the last pass left in ``.grad``
        self._clean_rng = rng.capture(self.device)

    def grad(
        self,
        batch: Batch,
        objective: Objective | None = None,
        *,
        work: float = 1.0,
        where: Sequence[bool] | None = None,
    ) -> tuple[StepOutput, Vec]:
        """Return the output and the mean gradient of ``objective`` over ``batch`` at the current weights.

        The method's own objective is the default.

        The batch goes through in micro-batches if the step has them; the result is their exact mean. Under
        DDP it is this process's mean, see `shared` and `apply`. The gradients are the caller's own. ``work``
        is the pass's cost in whole passes, for objectives that run part of the network more than once.
        ``where`` restricts the gradient to some parameters, which saves the others' part of the backward pass
        wherever that is possible (not in compiled or sharded models); it is counted as whole all the same.

        Raises `NonFinite` if the loss or a gradient is not finite, where that can be known at once.
        """
        if not self.untracked:
            self._clean_rng = rng.capture(self.device)
        if self.step_state.first is None or self._in_grad is not None:
            self.clear()
        parts = self.micro_batches(batch)
        whole, loss_weight = self.weight(batch), self.parallel.loss_weight()
        losses, logits = [], []
        # a backward pass written in Python may use parameters unseen, so the first graph is whole and is inspected
        may = where is not None and self.callable_in_parts and not self._memo.get("graph", True)
        off = [p for p, w in zip(self._leaves, where or (), strict=True) if not w] if may else []
        for part in parts:
            weight = self.options.weigh(part) / whole if whole else 0.0
            with self.parallel.no_sync(), param_groups.switched_off(off):
                with self.precision.autocast():
                    out = (objective or self.objective)(part)
                user_loss.require_graph(out.loss)
                if where is not None:
                    self.once("graph", partial(param_groups.has_custom_backward, out.loss))
                if not weight and out.logits.requires_grad:
                    # a part that does not count, such as one without labels, whose mean is NaN
                    out = StepOutput(0.0 * out.logits.sum(), out.logits)
                factor = weight * loss_weight
                loss = out.loss if factor == 1 else out.loss * factor
                self.precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(out.loss.detach() if weight == 1 else out.loss.detach() * weight)
            # logits that are a view of a weight would change with it at the next update
            logits.append(out.logits.detach().clone() if out.logits._is_view() else out.logits.detach())
        # they stay in .grad until the next pass: an update with them need not assign them again
        self._in_grad = [p.grad for p in self._leaves]
        if self._leaves is not self.params:
            self._in_grad = [complex_params.real_view(g) for g in self._in_grad]
        if self.step_state.first is None and self.passes.steps <= user_loss.CHECKED_STEPS:
            param_groups.require_dense(self._in_grad)
            if len(parts) > 1 or len(batch) < self.step_state.size:
                user_loss.require_additive(self, batch, parts, logits)
        grads = self.precision.unscaled(self._in_grad)
        if where is not None:
            grads = vector.only(grads, where)
        grads = vector.Measured(grads, self._kind)
        self.count(forward=work * len(batch), backward=work * len(batch))
        mean = losses[0] if len(parts) == 1 else torch.stack(losses).sum()
        joined = StepOutput(mean, join_logits(logits))
        self.step_state.first = self.step_state.first or joined
        self.check_finite(vector.finite_check(grads, mean.to(self.device)))
        return joined, grads

    def check_finite(self, check: Tensor) -> None:
        """Stop a step that is not finite: at once where one process may decide, else when it updates."""
        if not self.parallel.checks_every_pass:
            self.step_state.bad = self.step_state.bad | ~vector.all_finite(check)
        elif self.parallel.any_non_finite(check):
            raise NonFinite(self.step_state.output)

    def shared(self, grads: Vec) -> Vec:
        """Return the mean of ``grads`` over the processes that share a perturbation (``sync``).

        One process, or ``sync='local'``, sends nothing and returns them as they are.
        """
        step = self.step_state
        if step.group is not None:
            return grads
        means, step.bad = self.parallel.group_mean(self.params, grads, step.weight, step.bad)
        return means

    def all_reduce_mean(self, values: Vec) -> Vec:
        """Return the mean over all processes whatever ``sync`` is: for what the method remembers.

        Raises InputError while groups of a batch have perturbations of their own: each would remember its own.
        """
        step = self.step_state
        if step.group is not None:
            raise InputError("m needs a method that remembers no gradients, and this one does; leave m out")
        means, step.bad = self.parallel.mean(self.params, values, step.weight, step.bad)
        return means

    @contextmanager
    def preserve_state(self, mask_seed: int | None = None) -> Iterator[None]:
        """Restore buffers and RNG on leaving: what happens inside changes neither.

        Dropout masks are those of the last clean pass, or fresh ones from ``mask_seed`` (see `draw_mask_seed`).
        """
        buffers, states = self.buffers.snapshot(), rng.capture(self.device)
        outer, self.untracked = self.untracked, True
        try:
            if mask_seed is None:
                rng.restore(self._clean_rng, self.device)
            else:
                torch.manual_seed(mask_seed)
            yield
        finally:
            self.untracked = outer
            rng.restore(states, self.device)
            buffers.restore()
            buffers.release()

    @contextmanager
    def at(
        self, offset: Vec | ScaledVector, *, mask_seed: int | None = None, clean: bool = False
    ) -> Iterator[None]:
        """Be at ``w + offset``; on leaving, also by an exception, the weights are restored bit for bit.

        Buffers and RNG are restored too (see `preserve_state`), unless it is ``clean``: the only pass of its step,
        whose running statistics and random draws count.
        """
        direction, by, times = vector.factors(offset)
        whole, moved = len(by) == len(direction), self.params
        if not whole:
            moved = [p for p, o in zip(self.params, direction, strict=True) if o is not None]
        with nullcontext() if clean else self.preserve_state(mask_seed), torch.no_grad():
            weights = self._weight_snapshots.make(moved)
            try:
                self.parallel.reshard()
                vector.move(moved, by, times, self._kind if whole else None)
                with torch.enable_grad():
                    yield
            finally:
                self.parallel.reshard()
                weights.restore()
                self._weight_snapshots.release(weights)

    def apply(
        self,
        grads: Vec,
        *,
        times: int = 1,
        more: bool = False,
        weight: float | None = None,
        decoupled: Vec | None = None,
    ) -> None:
        """Update: average over processes, transform, clip once, and let the optimizer make its step.

        ``times`` makes that many steps from the same gradient. ``more`` if the method goes on to further
        passes in this step: ``grads`` stay as they are, and the update is taken back if one of those passes
        is not finite. ``weight`` is what this process's gradient counts in the mean, its samples by default.
        ``decoupled`` is averaged too, and added to the weights times their learning rate, past the optimizer.

        Raises `NonFinite` if any process met a non-finite value in this step.
        """
        step, options = self.step_state, self.options
        if step.group is not None:
            step.group.collect(grads, decoupled, one=times == 1 and not more)
            return
        counts = step.weight if weight is None else weight
        grads, step.bad = self.parallel.mean(self.params, grads, counts, step.bad)
        if self.parallel.should_skip_update(step.bad, more):
            raise NonFinite(step.output)
        if decoupled is not None:
            decoupled, _ = self.parallel.mean(self.params, decoupled, counts, step.bad)
        averaged = grads
        for transform in options.transforms:
            grads = transform(grads, self)
        if options.clip is not None:
            clip = self._clipped
            grads = vector.map_groups(clip, grads, self.member) if options.clip_each else clip(grads)
        if more:
            step.before_update(self.params, self.optimizer, self._update_snapshots)
        self.parallel.reshard()
        for remaining in reversed(range(times)):
            # some optimizers write into the gradients that they get
            fresh = vector.clone(grads) if remaining or (more and grads is averaged) else grads
            if self._in_grad is None or not all(map(is_, fresh, self._in_grad)):
                if self._leaves is not self.params:
                    pairs = zip(fresh, self.params, strict=True)
                    fresh = [None if g is None else complex_params.like_leaf(g, p) for g, p in pairs]
                for p, g in zip(self._leaves, fresh, strict=True):
                    p.grad = g
                self._in_grad = None
            self.optimizer.step()
            self.passes.updates += 1
        if decoupled is not None:
            lr = param_groups.per_group(self.optimizer, self.params, "lr", 0.0)
            with torch.no_grad():
                for p, d in zip(self.params, vector.scale(decoupled, lr), strict=True):
                    if d is not None:
                        p.add_(d)
        self.clear()

    def _clipped(self, grads: Vec) -> Vec:
        assert self.options.clip is not None
        return vector.scale(grads, (self.options.clip / (vector.norm(grads) + 1e-6)).clamp(max=1.0))

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return the logits of each micro-batch at the current weights, without a graph.

        Raises `NonFinite` as `grad` does.
        """
        with torch.no_grad(), self.precision.autocast():
            logits = [self.forward(part.x) for part in self.micro_batches(batch)]
        self.count(forward=len(batch))
        self.check_finite(vector.finite_check([*logits]).to(self.device))
        return logits

    def forward(self, x: Any) -> Tensor:
        """Return the model's logits on a batch's inputs, with their graph."""
        return extract_logits(call_model(self.model, x))

    def supervised(self, batch: Batch) -> StepOutput:
        """Return the user's loss on a batch, with its graph."""
        if self.options.loss == "model":
            return StepOutput(*extract_loss(call_model(self.model, batch.x, batch.y)))
        if batch.y is None:
            raise InputError("the batch has no targets; give y, 'labels', or loss='model' if the model has one")
        logits = self.forward(batch.x)
        return StepOutput(self.loss(logits, batch.y), logits)

    def loss(self, logits: Tensor, y: Any) -> Tensor:
        """Return the user's loss, in at least float32 whatever the precision of the pass."""
        return user_loss.loss_value(self.options.loss, upcast_to_float32(logits), y)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        """Return what each sample (B,) adds to the loss, from logits of the batch or its micro-batches."""
        logits, parts = (outputs, self.micro_batches(batch)) if isinstance(outputs, list) else ([outputs], [batch])
        pairs = zip(map(upcast_to_float32, logits), parts, strict=True)
        with torch.no_grad(), self.preserve_state():
            return torch.cat([user_loss.of_samples(self.options.loss, z, part) for z, part in pairs])

    def setting(self, name: str, value: ScheduleValue) -> float | list[float]:
        """Return a hyper-parameter's value in this step: one number, or one per parameter.

        It may follow a schedule, and an optimizer's parameter group may have its own under the same name, unless
        the optimizer itself has a setting of that name. Raises InputError unless it is finite and at least 0.
        """
        return param_groups.setting(self.optimizer, self.params, name, value_at(value, self.now))

    def momentum(self) -> Vec:
        """Return the optimizer's momentum (SGD's buffer, Adam's first moment), None for parameters without one.

        Raises InputError if the optimizer has made updates and keeps none.
        """
        return param_groups.momentum(self.optimizer, self.params, expected=self.passes.updates > 0)

    @property
    def now(self) -> TrainingProgress:
        """Where training is."""
        lr = param_groups.learning_rate(self.optimizer)
        done = max(self.passes.steps - 1, 0)
        length = self.options.steps
        return TrainingProgress(done, length() if callable(length) else done / length if length else None, lr)

    def draw_mask_seed(self) -> int:
        """Return a seed for fresh dropout masks, from the step's own generator."""
        return int(torch.randint(2**62, (), generator=self._mask_rng, device=self._mask_rng.device))

    @contextmanager
    def rng_restored(self) -> Iterator[None]:
        """Restore the RNG on leaving, so that what follows sees the same masks."""
        states = rng.capture(self.device)
        try:
            yield
        finally:
            rng.restore(states, self.device)

    @property
    def member(self) -> list[int]:
        """For each parameter the number of its network or branch, from 1; 0 if several of them share it."""
        return self.once("member", lambda: member_of(self.net, self.params))

    @property
    def _kind(self) -> vector.TensorKind:
        """What all parameters, and so their gradients, have in common; the model's type may change."""
        return self.once(("kind", self.params[0].dtype), lambda: vector.TensorKind.of(self.params))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` returned the first time: for facts about the network that do not change."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """Return the parts in which a batch goes through the model."""
        if batch is self.step_state.batch:
            return self.step_state.micro_batches
        size, parts = self.options.microbatch, batch.parts()
        return parts if size is None else [piece for part in parts for piece in part.split(size)]

    def weight(self, batch: Batch) -> float:
        """Return what a batch counts in a mean: its samples, unless `bind` was given ``weigh``."""
        if batch is self.step_state.batch:
            return self.step_state.weight
        return float(sum(map(self.options.weigh, self.micro_batches(batch))))

    def count(self, *, forward: float = 0.0, backward: float = 0.0) -> None:
        """Count samples that went through the model; kept in passes of one network over the step's batch."""
        unit = (self.step_state.size or 1) / self.relative_cost
        self.passes.forward += forward / unit
        self.passes.backward += backward / unit

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators that resume needs, by name."""
        return {"noise": self.rng, "masks": self._mask_rng}

    def begin(self, batch: Batch) -> None:
        """Start a step on this batch."""
        same = param_groups.same(leaves := param_groups.trainable(self.optimizer), self._leaves)
        if not same or (self._leaves is not self.params and complex_params.stale(self.params)):
            self._leaves, self.params = leaves, complex_params.real_views(leaves)
            self.owners, self._memo = param_groups.owners(self.net, leaves), {}
            self.buffers = Buffers(*self._with_state)
        if self.passes.steps <= user_loss.CHECKED_STEPS:
            param_groups.refuse_accumulation_hooks(self._leaves)  # they may be added after the method is bound
        parts, weight = self.micro_batches(batch), self.weight(batch)
        user_loss.require_weights(self.options.weigh, parts, weight, self.parallel.size)
        self.step_state = StepState(self.buffers.snapshot(), self._good, batch, parts, weight)
        self.parallel.begin(weight, len(parts))
        self.parallel.reshard()
        if isinstance(self.net, MultiNetwork):
            several, sample = self.net, next(parts[0].split(2)) if parts[0].has_size else parts[0]
            self.relative_cost = self.once("relative_cost", lambda: several.relative_cost(sample))
        self.passes.steps += 1

    def adopt(self, state: nn.Module) -> None:
        """Restore the statistics of a method's averages with the network's; its vectors are of the parameters."""
        for part in state.modules():
            if isinstance(part, ParamState):
                part.trained = lambda: (self.params, self.net)
        self._with_state += [m.statistics for m in state.modules() if isinstance(m, WeightAverage)]
        self.buffers = Buffers(*self._with_state)

    def roll_back(self) -> None:
        """Restore weights, optimizer and buffers as they were when the step began."""
        self.step_state.restore()
        self.clear()

    def end(self, *, skipped: bool) -> None:
        """End the step, for the loss scale and on all processes."""
        if self._in_grad is not None:
            self.clear()
        self.step_state.close()
        self.precision.record(finite=not skipped)
        self.parallel.share_buffers(self.net)

    def clear(self) -> None:
        """Set every gradient to None."""
        for p in self._leaves:
            p.grad = None
        self._in_grad = None
