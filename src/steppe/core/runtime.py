"""What a method may do: take a gradient, evaluate at other weights, apply an update.

No method can break these rules: weights are restored by copy; running statistics and the RNG advance in the clean
pass only; noise comes from the step's own generators; gradients are exact means over micro-batches and processes,
without a loss scale; passes are counted; a non-finite value stops the step before it reaches the weights.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steppe.core import param_groups, user_loss
from steppe.core.amp import MixedPrecision, upcast_to_float32
from steppe.core.batch import Batch, micro_batches
from steppe.core.data_parallel import Sharded, SingleProcess, parallelism_of
from steppe.core.execution import _operations as operations
from steppe.core.execution._device_checks import DeviceChecks
from steppe.core.execution._operations import Mask, Objective
from steppe.core.model_call import call_model, extract_logits, extract_loss, reuses_outputs, unwrap_model
from steppe.core.multi_network import member_of
from steppe.core.numerics import complex_params, vector
from steppe.core.numerics.outputs import Outputs
from steppe.core.numerics.vector import ScaledVector, Vec
from steppe.core.schedules import ScheduleValue, TrainingProgress
from steppe.core.state import rng
from steppe.core.state.pass_rng import PassRNG
from steppe.core.state.snapshot import Buffers, Elsewhere, SnapshotPool
from steppe.core.step_state import BindOptions, LossFunction, NonFinite, Passes, StepOutput, StepState
from steppe.errors import InputError

__all__ = ["BindOptions", "LossFunction", "Objective", "Passes", "Runtime", "StepOutput"]
T = TypeVar("T")
_WIDE = (torch.float32, torch.float64)


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
        # returns the fraction that is done of the window of the active method
        self.window: Callable[[TrainingProgress], float] | None = None
        self.untracked, self.relative_cost = False, 1.0  # of a pass of the model, in passes of one network
        self.objective: Objective = self.supervised  # until the step sets its method's
        self._model_has_loss = user_loss.calls_model(options.loss)
        self.good = torch.zeros((), dtype=torch.bool, device=self.device)
        self._weight_snapshots, self.update_snapshots = SnapshotPool(), SnapshotPool()
        self.step_state = StepState(self.good)
        self.in_grad: Vec | None = None  # the tensors that the last pass left in ``.grad``
        self.pass_rng: Any = PassRNG(self.device, host=not options.graph)
        self.recorder: Any = None  # while a step is made that is, or becomes, a graph
        self.checks = DeviceChecks(self.device)
        self.outputs_reused = self.device.type == "cuda" and reuses_outputs(model)
        # to read a value from a GPU is to wait for it
        self.on_device = self.device.type == "cuda" and not isinstance(self.parallel, Sharded)

    def grad(
        self,
        batch: Batch,
        objective: Objective | None = None,
        *,
        work: float = 1.0,
        where: Mask = None,
        last: bool = False,
    ) -> tuple[StepOutput, Vec]:
        """Return the output and the mean gradient of ``objective`` (the method's) over ``batch`` at the weights.

        The result is the exact mean over the step's micro-batches; under DDP it is this process's mean (see
        `shared`). The gradients are the caller's own. ``work`` is the cost in passes, for objectives that
        run part of the network more than once. ``where`` restricts the gradient to some parameters, which saves
        the others' backward pass where that is possible (no compiled or sharded model); it is counted as whole.
        ``last`` if `apply` makes its update with this very gradient: DDP on a GPU then averages it during the
        backward pass, so that it is the mean over all processes.

        Raises `NonFinite` if the loss or a gradient is not finite, where that can be known at once.
        """
        step = self.step_state
        if not self.untracked:
            self.pass_rng.begin_clean()
        if self.on_device:
            self.checks.settle(step.bad)
        self.clear()
        parts, whole, objective = self.micro_batches(batch), self.weight(batch), objective or self.objective
        if where is None and len(parts) == 1 and whole and self.alone:
            out = operations.make_pass(self, parts[0], objective, 1.0)
            logits = [out.logits]
        else:
            out, logits = operations.make_passes(self, parts, objective, whole, where, last)
        # they stay in .grad until the next pass: an update with them need not assign them again
        grads = [p.grad for p in self.leaves]
        self.in_grad = grads = grads if self.leaves is self.params else list(map(complex_params.real_view, grads))
        if step.first is None:
            step.first = out
            if self.passes.steps <= user_loss.CHECKED_STEPS:
                operations.check_first_pass(self, batch, parts, logits, grads)
        if self.precision.scaler is not None:
            grads = self.precision.unscaled(grads)
        if self.outputs_reused:  # the next pass would overwrite them
            grads = vector.clone(grads)
        grads = vector.Measured(grads if where is None else vector.only(grads, where))
        step.averaged = grads if step.averages else None
        size = step.size if batch is step.batch else len(batch)
        self.count(forward=work * size, backward=work * size)
        if self.on_device:
            self.checks.add_grads(grads)
            self.check_finite(out.loss)
        else:
            self.check_finite(grads.norm(self._measure) if self.alone else vector.finite_check(grads), out.loss)
        return out, grads

    def check_finite(self, *numbers: Tensor) -> None:
        """Stop a step of numbers that are not finite: at once where a process may decide, else when it updates."""
        if self.on_device:
            self.checks.add(*numbers)
            if not self.alone:  # the flag travels with the next gradient
                self.checks.flush(self.step_state.bad)
            return
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

    def all_reduce_mean(self, values: Vec, weight: float | None = None, of: Any = None) -> Vec:
        """Return the mean over all processes whatever ``sync`` is, by ``weight`` as in `apply`: for a memory.

        ``of``: tensors other than the parameters. Raises InputError while groups of a batch have perturbations.
        """
        s = self.step_state
        if s.group is not None:
            raise InputError("m needs a method that remembers no gradients, and this one does; leave m out")
        weight, params = s.weight if weight is None else weight, of or self.params
        means, s.bad = self.parallel.mean(params, values, weight, s.bad)
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
            self.reshard()
            vector.move(moved, by, times)

        if clean:
            return Elsewhere(moved, move, leave=self.reshard, pool=self._weight_snapshots)
        return self._elsewhere(moved, move, mask_seed)

    def _elsewhere(self, moved: Sequence[Tensor], move: Callable[[], None], mask_seed: int | None) -> Elsewhere:
        outer, entered = False, False

        def change() -> None:
            nonlocal outer, entered
            outer, self.untracked = self.untracked, True
            self.pass_rng.enter(mask_seed)
            entered = True
            move()

        def leave() -> None:
            if entered:  # else the snapshot could not be made
                self.untracked = outer
                self.pass_rng.leave()
            self.reshard()

        return Elsewhere(moved, change, buffers=self.buffers, leave=leave, pool=self._weight_snapshots)

    def reshard(self) -> None:
        """Drop gathered copies of a sharded model's weights."""
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
        step = self.step_state
        if step.group is not None:
            step.group.collect(grads, decoupled, one=times == 1 and not more)
            return
        if grads is step.averaged and grads is not None and weight is None and decoupled is None:
            step.bad = self.parallel.any_bad(step.bad)
        elif not self.alone:
            counts = step.weight if weight is None else weight
            grads, step.bad = self.parallel.mean(self.params, grads, counts, step.bad)
            if decoupled is not None:
                decoupled, _ = self.parallel.mean(self.params, decoupled, counts, step.bad)
        operations.make_update(self, grads, times, more, decoupled)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return each micro-batch's logits at the weights, without a graph; raises `NonFinite` as `grad`."""
        with torch.no_grad(), self.precision.autocast():
            logits = [operations.lasting(self, self.forward(part)) for part in self.micro_batches(batch)]
        self.count(forward=len(batch))
        self.check_finite(vector.finite_check([*logits]))
        return logits

    def forward(self, x: Any, net: nn.Module | None = None) -> Tensor:
        """Return the logits, with their graph, on inputs or a `Batch`: then those of the loss's own call."""
        model, batch = net or self.model, isinstance(x, Batch)
        if batch and self._model_has_loss:
            return extract_loss(user_loss.own_loss(self.options.loss, model, x.x, x.y))[1]
        x = x.x if batch else x
        try:
            output = model(x) if isinstance(x, Tensor) else call_model(model, x)
        except TypeError:
            output = call_model(model, x)  # which explains it
        return output if isinstance(output, Tensor) else extract_logits(output)

    def supervised(self, batch: Batch) -> StepOutput:
        """Return the user's loss on a batch, with its graph."""
        if self._model_has_loss:
            return StepOutput(*extract_loss(user_loss.own_loss(self.options.loss, self.model, batch.x, batch.y)))
        if batch.y is None:
            raise InputError("the batch has no targets; give y, 'labels', or loss='model', or a ModelLoss")
        return StepOutput(self.loss(logits := self.forward(batch), batch.y), logits)

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
        return self.once("outputs", partial(user_loss.form_of, self, logits, batch))

    def setting(self, name: str, value: ScheduleValue) -> Any:
        """Return a hyper-parameter's value in this step: one number, or one per parameter.

        It may follow a schedule, and an optimizer's parameter group may have its own under the same name, unless
        the optimizer itself has a setting of that name. Raises InputError unless it is finite and at least 0.
        """
        return operations.setting(self, name, value)

    def decide(self, question: Callable[[], bool]) -> bool:
        """Return the answer to a question that the host can answer before the step: of ``now``, of its own counts.

        A method decides so what it does in a step. A step that is a graph (``graph=True``) has one per answer.
        """
        return question() if self.recorder is None else self.recorder.decide(operations.in_window(self, question))

    def number(self, make: Callable[[], float]) -> Any:
        """Return a number that the host computes of ``now`` and its own counts, anew in each step.

        It is a tensor while a step becomes a graph.
        """
        return make() if self.recorder is None else self.recorder.number(operations.in_window(self, make))

    def momentum(self) -> Vec:
        """Return the optimizer's momentum (SGD's buffer, Adam's first moment), None for parameters without one.

        Raises InputError if the optimizer has made updates and keeps none.
        """
        return param_groups.momentum(self.optimizer, self.params, expected=self.passes.updates > 0)

    @property
    def now(self) -> TrainingProgress:
        """Where training is.

        Raises InputError in a step that may become a graph, outside of `decide` and `number`.
        """
        return operations.progress(self)

    @property
    def host_rng(self) -> torch.Generator:
        """A generator for choices that the host makes: ``rng`` itself, if that is on the host."""
        return self.rng if self.rng.device.type == "cpu" else self.generators["masks"]

    def draw_mask_seed(self) -> int:
        """Return a seed for fresh dropout masks, from the step's own generator."""
        seed: int = self.pass_rng.draw_seed(self.generators["masks"])
        return seed

    def rng_restored(self) -> AbstractContextManager[None]:
        """Restore the RNG on leaving, so that what follows sees the same masks."""
        context: AbstractContextManager[None] = self.pass_rng.restored()
        return context

    @property
    def member(self) -> list[int]:
        """For each parameter the number of its network or branch, from 1; 0 if several of them share it."""
        return self.once("member", lambda: member_of(self.net, self.params))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` returned the first time: for facts about the network that do not change."""
        value: T = self.memo[key] if key in self.memo else self.memo.setdefault(key, make())
        return value

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
            self.owners, self.memo = param_groups.owners(self.net, leaves), dict[Hashable, Any]()
            self._measure = vector.measure_of(self.params)
            operations.clear_frozen(self.optimizer)
            self.buffers = Buffers(*self.with_state)

    def clear(self) -> None:
        """Set every gradient to None, those of the last pass included."""
        for p in self.leaves:
            p.grad = None
        self.in_grad = None
