"""A method bound to a model and an optimizer, called once per batch."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steppe.core import param_groups
from steppe.core.batch import Batch, as_batch, join_logits, micro_batches
from steppe.core.data_parallel import NO_LOCAL_GRADIENT, Sharded
from steppe.core.execution._operations import clear_frozen
from steppe.core.multi_network import MultiNetwork
from steppe.core.optimizers.joint import evaluation_weights
from steppe.core.runtime import Runtime
from steppe.core.schedules import check_decay, check_length, check_start
from steppe.core.state.logit_bank import LogitBank
from steppe.core.state.param_state import ParamState, TensorCopies
from steppe.core.state.snapshot import Buffers, evaluation_mode
from steppe.core.state.weight_average import WeightAverage
from steppe.core.step_state import BindOptions, GradientAccumulator, NonFinite, Passes, StepOutput, StepState
from steppe.core.user_loss import CHECKED_STEPS, require_additive, require_weights
from steppe.errors import InputError


class _Method(Protocol):
    """What a step uses of a `steppe.Method`."""

    @property
    def whole(self) -> str: ...
    @property
    def single(self) -> str: ...
    @property
    def on_host(self) -> str: ...
    def init(self, net: nn.Module) -> nn.Module: ...
    def scheduled_limits(self) -> tuple[str, ...]: ...
    def may_be_at_limit(self) -> bool: ...
    def step(self, batch: Batch, state: Any, rt: Runtime) -> StepOutput: ...
    def objective_or_plain(self, batch: Batch, state: Any, rt: Runtime) -> StepOutput: ...
    def step_or_plain(self, batch: Batch, state: Any, rt: Runtime) -> StepOutput: ...
    def before(self, batch: Batch, state: Any, rt: Runtime) -> None: ...
    def after(self, batch: Batch, out: StepOutput, state: Any, rt: Runtime) -> None: ...
    def predict(self, net: nn.Module, state: Any, x: Any) -> Tensor: ...
    def deployed_weights(self, net: nn.Module, state: Any) -> AbstractContextManager[None]: ...


class Step:
    """A method bound to a model by `steppe.Method.bind`: called once per batch, it makes one step."""

    def __init__(
        self,
        method: _Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: BindOptions,
    ):
        self.method = method
        self.runtime = runtime = Runtime(model, optimizer, options)
        if options.m is not None and isinstance(runtime.parallel, Sharded):
            raise InputError(
                f"m is {options.m!r} on a sharded model; {NO_LOCAL_GRADIENT}: leave m out, or use DDP"
            )
        if method.whole and isinstance(runtime.parallel, Sharded):
            raise InputError(f"{type(method).__name__} cannot train a sharded model: {method.whole}; use DDP")
        if method.single and isinstance(runtime.net, MultiNetwork):
            raise InputError(f"{type(method).__name__} cannot train several networks at once: {method.single}")
        self._limits, self._limited = method.scheduled_limits(), method.may_be_at_limit()
        self._before, self._after = _overridden(method, "before"), _overridden(method, "after")
        self.state, self._rng = method.init(runtime.net), runtime.pass_rng
        if options.decay_start is None:
            check_decay(method)
        if options.steps is None:
            check_length(method, runtime.now)
        elif not callable(options.steps):
            check_start(method, options.steps)
        self.state.to(runtime.device)
        # a weight, if vectors of the weights are stored, and its type
        self._stored: tuple[Tensor, torch.dtype] | None = None
        for part in self.state.modules():
            if isinstance(part, ParamState):
                part.trained = lambda: (runtime.params, runtime.net)
                self._stored = runtime.leaves[0], runtime.leaves[0].dtype
            if isinstance(part, WeightAverage):
                runtime.with_state.append(part.statistics)
        runtime.buffers = Buffers(*runtime.with_state)
        # averages and past outputs change in `after` only, and are large
        self._memory = Buffers(self.state, without=(TensorCopies, LogitBank))
        if _overridden(method, "objective"):
            runtime.objective = lambda batch: method.objective_or_plain(batch, self.state, runtime)
        self._graphed: Any = None
        if options.graph:
            from steppe.core.execution._graph import GraphedStep

            self._graphed = GraphedStep(self)
        for part in self.state.modules():
            if isinstance(part, WeightAverage):
                part.on_device = runtime.on_device

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError(
            "a step cannot be copied or pickled; copy the model, bind the method again, and load step.state_dict()"
        )

    @property
    def passes(self) -> Passes:
        """Forward and backward passes and optimizer updates so far, counted."""
        return self.runtime.passes

    @property
    def scaler(self) -> torch.amp.grad_scaler.GradScaler | None:
        """The loss scale of fp16, for reading; the step itself updates it and saves it."""
        return self.runtime.precision.scaler

    def __call__(self, x: Any, y: Any = None) -> StepOutput:
        """Make one step on ``(x, y)``, a `Batch`, a pair, a mapping, or a list of these.

        A list is one batch in micro-batches: every pass of the method sees every part with that part's own
        dropout masks, so the result is that of the whole batch. If the loss or a gradient is not finite in any
        pass on any process, weights and optimizer are as before the step and ``out.skipped`` is True.

        Raises InputError for what is no batch.
        """
        batch = as_batch(x, y)
        return self.run(batch) if self._graphed is None else self._graphed(batch)

    def run(self, batch: Batch) -> StepOutput:
        """Make one step on a batch, operation by operation."""
        rt, skipped = self.runtime, False
        self._begin(batch)
        try:
            if self._before:
                self.method.before(batch, self.state, rt)
            out = self._in_groups(batch) if rt.options.m else self._of_method(batch)
        except NonFinite as signal:
            out, skipped = signal.out, True
            self._roll_back()
        except BaseException:
            self._roll_back()
            raise
        out.skip_flag = self._end(skipped=skipped)
        if self._after and not skipped:
            self.method.after(batch, out, self.state, rt)
        return out

    def _begin(self, batch: Batch) -> None:
        """Cut the batch, and snapshot what its passes change."""
        rt, options = self.runtime, self.runtime.options
        torch.clear_autocast_cache()  # a loop within autocast would make each step with the first one's weights
        listed = [p for group in rt.optimizer.param_groups for p in group["params"] if p.requires_grad]
        if rt.leaves is not rt.params or len(listed) != len(rt.leaves) or not all(map(is_, listed, rt.leaves)):
            rt.inspect(param_groups.trainable(rt.optimizer))
        if len(listed) != sum(len(group["params"]) for group in rt.optimizer.param_groups):
            clear_frozen(rt.optimizer)  # their gradients may be of a backward pass before they were frozen
        if self._stored is not None and self._stored[0].dtype != self._stored[1]:
            own, before = self._stored[0].dtype, self._stored[1]
            raise InputError(f"the weights are {own} and were {before} in bind; bind the method again")
        if rt.passes.steps <= CHECKED_STEPS:
            param_groups.refuse_accumulation_hooks(rt.leaves)  # they may be added after the method is bound
        size = len(batch)
        parts = micro_batches(batch, options.microbatch, rt.parallel.most_parts)
        weight = float(size) if options.weigh is len else float(sum(map(options.weigh, parts)))
        if not (rt.alone and len(parts) == 1 and weight == size):
            require_weights(options.weigh, parts, weight, rt.parallel.size)
        rt.step_state = step = StepState(rt.good, batch, parts, weight, size)
        if rt.buffers:
            step.snapshots.append(rt.buffers.snapshot())
        if rt.on_device:
            rt.checks.clear()
            step.bad = rt.checks.new_flag()
            if self._memory:
                step.snapshots.append(self._memory.snapshot())
        if not rt.alone:
            rt.parallel.begin(weight, len(parts))
            rt.parallel.reshard()
        if isinstance(rt.net, MultiNetwork):
            several, sample = rt.net, next(parts[0].split(2)) if parts[0].has_size else parts[0]
            rt.relative_cost = rt.once("relative_cost", lambda: several.relative_cost(sample))
        rt.passes.steps += 1

    def _roll_back(self) -> None:
        """Restore weights, optimizer and buffers as they were when the step began."""
        for snapshot in reversed(self.runtime.step_state.snapshots):
            snapshot.restore()
        self.runtime.clear()
        torch.clear_autocast_cache()

    def _end(self, *, skipped: bool) -> bool | Tensor:
        """Release the batch and the snapshots; end the step for the loss scale and on all processes.

        Returns whether the step is skipped, a tensor where the host does not know: the step is then undone there.
        """
        rt, step = self.runtime, self.runtime.step_state
        flag: bool | Tensor = skipped
        rt.clear()
        if rt.on_device and not skipped:
            flag = step.bad
            if rt.checks.pending:  # of passes without an update
                rt.checks.flush(step.bad)
                step.decided = False
            for snapshot in () if step.decided else reversed(step.snapshots):
                snapshot.restore_where(flag > 0)
        for snapshot in step.snapshots:
            snapshot.release()
        step.snapshots, step.batch, step.micro_batches = [], None, ()
        if self._rng.watched:
            self._rng.end_watched()
        if rt.precision.scaler is not None:
            rt.precision.record(flag)
        if not rt.alone:
            rt.parallel.share_buffers(rt.net)
        return flag

    def _of_method(self, batch: Batch) -> StepOutput:
        """Make the method's step, or a plain one at its limit, where a schedule or a group may bring it there."""
        groups = self.runtime.optimizer.param_groups
        ask = self._limited or any(name in group for group in groups for name in self._limits)
        make = self.method.step_or_plain if ask else self.method.step
        return make(batch, self.state, self.runtime)

    def _in_groups(self, batch: Batch) -> StepOutput:
        """Take each group's gradient, and make one update from their mean."""
        rt = self.runtime
        m: Any = rt.options.m
        groups = batch.parts() if m == "micro" else list(batch.split(int(m)))
        collected = rt.step_state.group = GradientAccumulator([None] * len(rt.params))
        outs = []
        for group in groups:
            collected.begin(rt.weight(group) / rt.step_state.weight)
            out = self._of_method(group)
            outs.append(StepOutput(out.loss * collected.weight, out.logits))
        rt.step_state.group = None
        if rt.passes.steps <= CHECKED_STEPS and len(groups) > 1:
            require_additive(rt, batch, groups, [o.logits for o in outs])
        rt.apply(collected.total, decoupled=collected.decoupled)
        return StepOutput(torch.stack([o.loss for o in outs]).sum(), join_logits([o.logits for o in outs]))

    def predict(self, x: Any) -> Tensor:
        """Return the logits of what the method deploys, in evaluation mode; modes and buffers are restored."""
        with evaluation_mode(self.runtime.net), self._evaluated():
            return self.method.predict(self.runtime.net, self.state, x)

    @contextmanager
    def deployed_weights(self) -> Iterator[None]:
        """Return the context in which the model itself has the weights that the method deploys.

        For `EMA` and `SWA` these are the mean, and the model is in evaluation mode; for most methods they are the
        trained weights, or those that a schedule-free optimizer evaluates. On leaving, the model is bit for bit
        what it was.
        """
        weights = self.method.deployed_weights(self.runtime.net, self.state)
        with self._evaluated(), weights:
            yield

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """Have the weights that a schedule-free optimizer evaluates; gathered copies of shards are dropped."""
        self.runtime.parallel.reshard()
        try:
            with evaluation_weights(self.runtime.optimizer):
                yield
        finally:
            self.runtime.parallel.reshard()

    def state_dict(self) -> dict[str, Any]:
        """Return what resume needs in addition to the model's and the optimizer's own state.

        Under DDP and FSDP2 each process has its own: its RNG state differs.
        """
        return {
            "method": str(self.method),
            "state": self.state.state_dict(),
            "generators": {k: g.get_state() for k, g in self.runtime.generators.items()},
            "passes": dict(vars(self.runtime.passes)),
            "scaler": self.runtime.precision.state_dict(),
            "host_draws": self._rng.state_dict(),
        }

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises InputError if it belongs to another method or another kind of device, or is no such state.
        """
        missing = {"method", "state", "generators", "passes"}.difference(content or ())
        if missing:
            raise InputError(f"this state has no {', '.join(sorted(missing))}; give what state_dict returned")
        if content["method"] != str(self.method):
            raise InputError(f"this state belongs to {content['method']}, not to {self.method!s}")
        rngs = content["generators"]
        for name, generator in self.runtime.generators.items():
            if name not in rngs:
                raise InputError(f"this state has no generator {name!r}; give what state_dict returned")
            if rngs[name].shape != generator.get_state().shape:
                raise InputError(
                    f"the state of generator {name!r} is not of a {generator.device.type}; load it on a device of "
                    "the kind that saved it"
                )
        if self._graphed is not None:
            self._graphed.forget()
        self.state.load_state_dict(content["state"])
        for name, generator in self.runtime.generators.items():
            generator.set_state(rngs[name].cpu())
        for name, value in content["passes"].items():
            setattr(self.runtime.passes, name, value)
        self.runtime.precision.load_state_dict(content.get("scaler", {}))
        if content.get("host_draws"):
            self._rng.load_state_dict(content["host_draws"])


def _overridden(method: _Method, name: str) -> bool:
    """Return whether a method has a part of its own, not that of the base class."""
    return sum(name in vars(cls) for cls in type(method).__mro__) > 1
