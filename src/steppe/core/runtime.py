"""What a method may do: take a gradient, evaluate at other weights, apply an update.

No method can break these rules: weights are restored by copy; running statistics and the RNG advance in the clean
pass only; noise comes from the step's own generators; gradients are exact means over micro-batches and processes,
without a loss scale; passes are counted; a non-finite value stops the step before it reaches the weights.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steppe.core import param_groups, user_loss
from steppe.core.amp import MixedPrecision, upcast_to_float32
from steppe.core.batch import Batch, join_logits, micro_batches
from steppe.core.data_parallel import Sharded, SingleProcess, parallelism_of
from steppe.core.model_call import call_model, extract_logits, extract_loss, unwrap_model
from steppe.core.multi_network import member_of
from steppe.core.numerics import complex_params, vector
from steppe.core.numerics.outputs import Outputs, outputs_of
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.core.schedules import ScheduleValue, TrainingProgress, value_at
from steppe.core.state import rng
from steppe.core.state.snapshot import Buffers, Elsewhere, SnapshotPool, of_training
from steppe.core.step_state import BindOptions, LossFunction, NonFinite, Passes, StepOutput, StepState
from steppe.errors import InputError

__all__ = ["BindOptions", "LossFunction", "Objective", "Passes", "Runtime", "StepOutput"]
T = TypeVar("T")
Objective = Callable[[Batch], StepOutput]
Mask = Sequence[bool] | None
_NOTHING = nullcontext()
_WIDE = (torch.float32, torch.float64)
_backward = torch.autograd.Variable._execution_engine.run_backward


class Runtime:
    """What one bound method works with.

    Passes:
        ``grad``, ``outputs`` (logits without a graph), ``forward``, ``supervised``, ``loss``, ``losses``;
        ``divergence`` of outputs; ``objective``, the method's own; ``at`` and ``preserve_state``, the contexts of
        passes after the clean one.
    Gradients:
        ``shared`` and ``all_reduce_mean`` over processes; ``apply``, the update.
    Numbers:
        ``setting``, a hyper-parameter's value in this step; ``momentum`` of the optimizer; ``now``, where training
        is; ``rng``, the generator of the method's noise; ``draw_mask_seed`` and ``rng_restored``, for dropout
        masks; ``options`` of `bind`.
    Model:
        ``model`` as bound; ``net``, the network below torch.compile and DDP; ``params``, the optimizer's trainable
        parameters, each once, complex ones (``leaves``) as real views (..., 2); of each ``owners``, its module,
        and ``member``, the number of its network; ``buffers``; ``device``; ``parallel``, the processes;
        ``callable_in_parts``: whether modules may be called alone, unlike in compiled or sharded models.
    Accounts:
        ``weight`` of a batch in means; ``count`` of samples that passed outside of ``grad`` and ``outputs``, into
        ``passes``; ``once``, a cache; ``untracked``: whether a pass made now leaves statistics and RNG unchanged.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BindOptions):
        self.model, self.optimizer, self.options = model, optimizer, options
        self.net, wrapper = unwrap_model(model)
        self.with_state = [self.net, *user_loss.modules_of(options.loss)]
        self.leaves = self.params = list[nn.Parameter]()
        param_groups.require_trainable(self.with_state, optimizer, param_groups.trainable(optimizer))
        self.inspect(param_groups.trainable(optimizer))
        self.device = self.params[0].device
        self.precision = MixedPrecision(options.precision, self.params[0], options.scaler)
        self.parallel = parallelism_of(self.net, wrapper, self.params, options.sync)
        self.alone = type(self.parallel) is SingleProcess  # one process with the whole model
        self.parallel.reshard()
        self.callable_in_parts = model in (self.net, wrapper) and not isinstance(self.parallel, Sharded)
        self.rng = rng.generator(options.seed, "noise", self.parallel.noise_id, self.device)
        # a number drawn on a GPU would have to be waited for
        masks = rng.generator(options.seed, "masks", self.parallel.rank, torch.device("cpu"))
        self.generators = {"noise": self.rng, "masks": masks}
        self.passes = Passes()
        self.window: float | None = None  # the fraction that is done of the window of the active method
        self.untracked, self.relative_cost = False, 1.0  # of a pass of the model, in passes of one network
        self.objective: Objective = self.supervised  # until the step sets its method's
        self.good = torch.zeros((), dtype=torch.bool, device=self.device)
        self._weight_snapshots, self._update_snapshots = SnapshotPool(), SnapshotPool()
        self.step_state = StepState(self.good)
        self._in_grad: Vec | None = None  # the tensors that the last pass left in ``.grad``
        self._global_rngs = rng.global_generators(self.device)
        self._clean_rng = [g.get_state() for g in self._global_rngs]

    def grad(
        self, batch: Batch, objective: Objective | None = None, *, work: float = 1.0, where: Mask = None
    ) -> tuple[StepOutput, Vec]:
        """Return the output and the mean gradient of ``objective`` (the method's) over ``batch`` at the weights.

        The result is the exact mean over the step's micro-batches; under DDP it is this process's mean (see
        `shared`). The gradients are the caller's own. ``work`` is the cost in passes, for objectives that
        run part of the network more than once. ``where`` restricts the gradient to some parameters, which saves
        the others' backward pass where that is possible (no compiled or sharded model); it is counted as whole.

        Raises `NonFinite` if the loss or a gradient is not finite, where that can be known at once.
        """
        step = self.step_state
        if not self.untracked:
            self._clean_rng = [g.get_state() for g in self._global_rngs]
        self.clear()
        parts, whole, objective = self.micro_batches(batch), self.weight(batch), objective or self.objective
        if where is None and len(parts) == 1 and whole and self.alone:
            out = self._pass(parts[0], objective, 1.0)
            logits = [out.logits]
        else:
            out, logits = self._passes(parts, objective, whole, where)
        # they stay in .grad until the next pass: an update with them need not assign them again
        grads = [p.grad for p in self.leaves]
        self._in_grad = grads = grads if self.leaves is self.params else list(map(complex_params.real_view, grads))
        if step.first is None:
            step.first = out
            if self.passes.steps <= user_loss.CHECKED_STEPS:
                param_groups.require_dense(grads)
                if len(parts) > 1 or len(batch) < step.size:
                    user_loss.require_additive(self, batch, parts, logits)
        if self.precision.scaler is not None:
            grads = self.precision.unscaled(grads)
        grads = vector.Measured(grads if where is None else vector.only(grads, where))
        size = step.size if batch is step.batch else len(batch)
        self.count(forward=work * size, backward=work * size)
        self.check_finite(grads.norm(self._measure) if self.alone else vector.finite_check(grads), out.loss)
        return out, grads

    def _passes(
        self, parts: Sequence[Batch], objective: Objective, whole: float, where: Mask
    ) -> tuple[StepOutput, list[Tensor]]:
        """Make the passes of several parts, of several processes, or of some parameters only."""
        # a backward pass written in Python may use parameters unseen, so the first graph is whole and is inspected
        may = where is not None and self.callable_in_parts and not self._memo.get("graph", True)
        off = [p for p, w in zip(self.leaves, where or (), strict=True) if not w] if may else []
        losses, logits = [], []
        for part in parts:
            weight = self.options.weigh(part) / whole if whole else 0.0
            with self.parallel.no_sync(), param_groups.switched_off(off):
                out = self._pass(part, objective, weight, inspect=where is not None)
            losses.append(out.loss if weight == 1 else out.loss * weight)
            logits.append(out.logits)
        mean = losses[0] if len(parts) == 1 else torch.stack(losses).sum()
        return StepOutput(mean, join_logits(logits)), logits

    def _pass(self, part: Batch, objective: Objective, weight: float, inspect: bool = False) -> StepOutput:
        """Make a forward and a backward pass, whose loss counts ``weight``; return its output without graph."""
        with self.precision.autocast() if self.precision.reduced else _NOTHING:
            out = objective(part)
        loss, logits = out.loss, out.logits
        if not loss.requires_grad:
            user_loss.require_graph(loss)
        if inspect:
            self.once("graph", partial(param_groups.has_custom_backward, loss))
        if not weight and logits.requires_grad:
            # a part that does not count, such as one without labels, whose mean is NaN
            loss = 0.0 * logits.sum()
        factor = weight if self.alone else weight * self.parallel.loss_weight()
        scaled = loss if factor == 1 else loss * factor
        if self.precision.scaler is not None:
            scaled = self.precision.scaled(scaled)
        if type(scaled) is Tensor and not scaled.dim():
            # what Tensor.backward() calls after checks that take a tenth of a small network's pass
            _backward((scaled,), (torch.ones_like(scaled),), False, False, (), True, True)
        else:
            scaled.backward()  # type: ignore[no-untyped-call]
        # logits that are a view of a weight would change with it at the next update
        return StepOutput(loss.detach(), logits.detach().clone() if logits._is_view() else logits.detach())

    def check_finite(self, *numbers: Tensor) -> None:
        """Stop a step of numbers that are not finite: at once where a process may decide, else when it updates."""
        if self.alone and self.parallel.checks_every_pass:
            if not all(map(math.isfinite, numbers)):
                raise NonFinite(self.step_state.output)
            return
        # what is not finite stays so in a sum
        check = sum((n.to(self.device) for n in numbers[1:]), numbers[0].to(self.device))
        if not self.parallel.checks_every_pass:
            self.step_state.bad = self.step_state.bad | ~vector.all_finite(check)
        elif self.parallel.any_non_finite(check):
            raise NonFinite(self.step_state.output)

    def shared(self, grads: Vec) -> Vec:
        """Return the mean of ``grads`` over the processes that share a perturbation (``sync``), if several do."""
        step = self.step_state
        if self.alone or step.group is not None:
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

    def preserve_state(self, mask_seed: int | None = None) -> AbstractContextManager[None]:
        """Restore buffers and RNG on leaving: what happens inside changes neither.

        Dropout masks are those of the last clean pass, or fresh ones from ``mask_seed`` (see `draw_mask_seed`).
        """
        return self._elsewhere((), lambda: None, mask_seed)

    def at(
        self, offset: Vec | ScaledVector, *, mask_seed: int | None = None, clean: bool = False, of: Any = None
    ) -> AbstractContextManager[None]:
        """Be at ``w + offset``; on leaving, also by an exception, the weights are restored bit for bit.

        Buffers and RNG are restored too (see `preserve_state`), unless it is ``clean``: the only pass of its step,
        whose running statistics and random draws count. ``of`` are the tensors w, by default the parameters.
        """
        (direction, by, times), moved = vector.factors(offset), self.params if of is None else of
        if len(by) < len(direction):
            moved = [p for p, o in zip(moved, direction, strict=True) if o is not None]

        def move() -> None:
            self._reshard()
            vector.move(moved, by, times)

        if clean:
            return Elsewhere(moved, move, leave=self._reshard, pool=self._weight_snapshots)
        return self._elsewhere(moved, move, mask_seed)

    def _elsewhere(self, moved: Sequence[Tensor], move: Callable[[], None], mask_seed: int | None) -> Elsewhere:
        outer = False

        def change() -> None:
            nonlocal outer
            outer, self.untracked = self.untracked, True
            for generator, state in zip(self._global_rngs, self._clean_rng, strict=True):
                # torch.manual_seed also formats a traceback for each backend
                generator.set_state(state) if mask_seed is None else generator.manual_seed(mask_seed)
            move()

        def leave() -> None:
            self.untracked = outer
            self._reshard()

        pool, rngs = self._weight_snapshots, self._global_rngs
        return Elsewhere(moved, change, buffers=self.buffers, generators=rngs, leave=leave, pool=pool)

    def _reshard(self) -> None:
        if not self.alone:
            self.parallel.reshard()

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
        if not self.alone:
            counts = step.weight if weight is None else weight
            grads, step.bad = self.parallel.mean(self.params, grads, counts, step.bad)
            if decoupled is not None:
                decoupled, _ = self.parallel.mean(self.params, decoupled, counts, step.bad)
        checked = self.alone and self.parallel.checks_every_pass
        if not checked and self.parallel.should_skip_update(step.bad, more):
            raise NonFinite(step.output)
        averaged = grads
        for transform in options.transforms:
            grads = transform(grads, self)
        if options.clip is not None:
            grads = vector.clip(grads, options.clip, self.member if options.clip_each else None)
        if more and not step.updates_undone:
            step.updates_undone = True
            step.snapshots.append(of_training(self.params, self.optimizer, self._update_snapshots))
        self._reshard()
        for remaining in reversed(range(times)):
            # some optimizers write into the gradients that they get
            fresh = vector.clone(grads) if remaining or (more and any(map(is_, grads, averaged))) else grads
            if self._in_grad is None or not all(map(is_, fresh, self._in_grad)):
                if self.leaves is not self.params:
                    fresh = complex_params.like_leaves(fresh, self.params)
                for p, g in zip(self.leaves, fresh, strict=True):
                    p.grad = g
                self._in_grad = None
            self.optimizer.step()
            self.passes.updates += 1
        if decoupled is not None:
            param_groups.add_decoupled(self.optimizer, self.params, decoupled)
        if more:  # else the step ends, which clears them
            self.clear()

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return each micro-batch's logits at the weights, without a graph; raises `NonFinite` as `grad`."""
        with torch.no_grad(), self.precision.autocast():
            logits = [self.forward(part.x) for part in self.micro_batches(batch)]
        self.count(forward=len(batch))
        self.check_finite(vector.finite_check([*logits]))
        return logits

    def forward(self, x: Any) -> Tensor:
        """Return the model's logits on a batch's inputs, with their graph."""
        output = self.model(x) if isinstance(x, Tensor) else call_model(self.model, x)
        return output if isinstance(output, Tensor) else extract_logits(output)

    def supervised(self, batch: Batch) -> StepOutput:
        """Return the user's loss on a batch, with its graph."""
        if user_loss.calls_model(self.options.loss):
            return StepOutput(*extract_loss(user_loss.own_loss(self.options.loss, self.model, batch.x, batch.y)))
        if batch.y is None:
            raise InputError(
                "the batch has no targets; give y, 'labels', or loss='model' if the model has one, or a ModelLoss"
            )
        return StepOutput(self.loss(logits := self.forward(batch.x), batch.y), logits)

    def loss(self, logits: Tensor, y: Any) -> Tensor:
        """Return the user's loss, in at least float32 whatever the precision of the pass."""
        loss, z = self.options.loss, logits if logits.dtype in _WIDE else upcast_to_float32(logits)
        try:
            value = loss(z, y)  # type: ignore[operator] # text is refused below
        except Exception as error:
            user_loss.require_targets(error, loss, z, y)
            raise
        usual = isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad and value.dtype in _WIDE
        return value if usual else user_loss.loss_value(lambda *_: value, z, y)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        """Return what each sample (B,) adds to the loss, from logits of the batch or its micro-batches."""
        logits, parts = (outputs, self.micro_batches(batch)) if isinstance(outputs, list) else ([outputs], [batch])
        pairs = zip(map(upcast_to_float32, logits), parts, strict=True)
        with torch.no_grad(), self.preserve_state():
            return torch.cat([user_loss.of_samples(self.options.loss, z, part) for z, part in pairs])

    def divergence(self, reference: Tensor, logits: Tensor, batch: Batch, T: float = 1.0) -> Tensor:
        """Return the mean divergence () of ``logits`` from ``reference``, by what they are; see `Outputs`."""
        return self.form_of(logits, batch).divergence(reference, logits, batch.y, T)

    def form_of(self, logits: Tensor, batch: Batch) -> Outputs:
        """Return what the outputs are: ``outputs`` of `bind`, or what the loss and the first targets say."""

        def decide() -> Outputs:
            with self.rng_restored(), torch.no_grad():
                return outputs_of(self.options.loss, logits, batch.y, self.options.outputs)

        return self.once("outputs", decide)

    def setting(self, name: str, value: ScheduleValue) -> float | list[float]:
        """Return a hyper-parameter's value in this step: one number, or one per parameter.

        It may follow a schedule, and an optimizer's parameter group may have its own under the same name, unless
        the optimizer itself has a setting of that name. Raises InputError unless it is finite and at least 0.
        """
        own = any(name in group for group in self.optimizer.param_groups)
        if not own and isinstance(value, float) and 0 <= value < math.inf:
            return value
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
        done, length = max(self.passes.steps - 1, 0), self.options.steps
        share = length() if callable(length) else done / length if length else None
        return TrainingProgress(done, share, lr, self.options.decay_start, self.window)

    def draw_mask_seed(self) -> int:
        """Return a seed for fresh dropout masks, from the step's own generator."""
        return int(torch.randint(2**62, (), generator=self.generators["masks"]))

    def rng_restored(self) -> AbstractContextManager[None]:
        """Restore the RNG on leaving, so that what follows sees the same masks."""
        return Elsewhere((), generators=self._global_rngs)

    @property
    def member(self) -> list[int]:
        """For each parameter the number of its network or branch, from 1; 0 if several of them share it."""
        return self.once("member", lambda: member_of(self.net, self.params))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` returned the first time: for facts about the network that do not change."""
        return self._memo[key] if key in self._memo else self._memo.setdefault(key, make())  # type: ignore[no-any-return]

    def micro_batches(self, batch: Batch) -> Sequence[Batch]:
        """Return the parts in which a batch goes through the model."""
        if batch is self.step_state.batch:
            return self.step_state.micro_batches
        return micro_batches(batch, self.options.microbatch, self.parallel.most_parts)

    def weight(self, batch: Batch) -> float:
        """Return what a batch counts in a mean: its samples, unless `bind` was given ``weigh``."""
        if batch is self.step_state.batch:
            return self.step_state.weight
        return float(sum(map(self.options.weigh, self.micro_batches(batch))))

    def count(self, *, forward: float = 0.0, backward: float = 0.0) -> None:
        """Count samples that went through the model, in passes of one network over the step's batch."""
        unit = (self.step_state.size or 1) / self.relative_cost
        self.passes.forward += forward / unit
        self.passes.backward += backward / unit

    def inspect(self, leaves: list[nn.Parameter]) -> None:
        """Find out once what holds for these parameters and for the modules with buffers."""
        stale = self.leaves is not self.params and complex_params.stale(self.params)
        if stale or not param_groups.same(leaves, self.leaves):
            self.leaves, self.params = leaves, complex_params.real_views(leaves)
            self.owners = param_groups.owners(self.net, leaves)
            self._measure, self._memo = vector.measure_of(self.params), dict[Hashable, Any]()
            self.buffers = Buffers(*self.with_state)

    def clear(self) -> None:
        """Set every gradient to None, those of the last pass included."""
        for p in self.leaves:
            p.grad = None
        self._in_grad = None
