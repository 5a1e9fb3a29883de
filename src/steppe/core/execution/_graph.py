"""A whole step as one graph: recorded once for each kind of step, then replayed without Python.

A kind of step is the shapes of its batch, the settings of the optimizer, and the answers to what the method asks
in each step (`steppe.core.runtime.Runtime.decide`). Numbers that change from step to step enter as tensors
(`Runtime.number`, learning rates). On a GPU the graph is a CUDA graph; on a processor it is a list of operations,
which is no faster, and tests the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from steppe.core import param_groups
from steppe.core.batch import Batch
from steppe.core.data_parallel import SingleProcess
from steppe.core.execution._graph_backends import Backend, CudaGraph, Tape
from steppe.core.execution._operations import optimizers_of
from steppe.core.model_call import reuses_outputs
from steppe.core.numerics.vector import sharded
from steppe.core.optimizers.joint import parts_of, states_of
from steppe.core.state.snapshot import Snapshot, noted
from steppe.core.state.weight_average import WeightAverage
from steppe.core.step_state import StepOutput
from steppe.core.user_loss import CHECKED_STEPS
from steppe.errors import InputError

if TYPE_CHECKING:
    from steppe.core.step import Step

_WARM = 2  # steps of a kind that are made as usual before one is recorded
_NUMBERS = 64  # that a graph reads, besides learning rates
_CHANGES = 10  # of the optimizer's settings, without a step that could be replayed
Key = tuple[Any, ...]


@dataclass
class _Number:
    """A number of each step, in a tensor that graphs read."""

    make: Callable[[], float]
    tensor: Tensor
    value: float = math.nan

    def set(self) -> None:
        value = self.make()
        if value != self.value:
            self.value = value
            self.tensor.fill_(value)


@dataclass
class _Kind:
    """Steps that ask the same questions with the same answers."""

    questions: list[Callable[[], bool]]
    answers: list[bool]
    steps: int = 0
    recorded: _Recorded | None = None


@dataclass
class _Recorded:
    """A step that can be replayed: what it reads, what it returns, and what it adds to counts on the host."""

    inputs: list[Tensor]
    numbers: list[_Number]
    output: StepOutput
    replay: Callable[[], None]
    passes: dict[str, float]
    counts: list[tuple[nn.Module, str, int]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)  # whose memory it writes


class Recorder:
    """What a step asks while it is made: the host's decisions, and numbers that change from step to step."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        slots: list[Tensor] | None = None,
        fill: Callable[[Tensor, float], object] | None = None,
        recording: bool = False,
    ):
        self.lr = param_groups.learning_rate(optimizer)  # before it enters the graph as a tensor
        self.questions: list[Callable[[], bool]] = []
        self.answers: list[bool] = []
        self.numbers: list[_Number] = []
        self.recording, self.on_host = recording, False
        self._slots, self._fill = slots or [], fill

    def decide(self, question: Callable[[], bool]) -> bool:
        """Return the answer, and remember the question."""
        if self.on_host:  # a question within a question
            return question()
        answer: bool = self.answer(question)
        self.questions.append(question)
        self.answers.append(answer)
        return answer

    def answer(self, make: Callable[[], Any]) -> Any:
        """Return what the host computes of the step's number and of its own counts."""
        outer, self.on_host = self.on_host, True
        try:
            return make()
        finally:
            self.on_host = outer

    def number(self, make: Callable[[], float]) -> Any:
        """Return a number, while a step is recorded a tensor that has it in each replay."""
        value = self.answer(make)
        if self.on_host or self._fill is None:
            return value
        if not self._slots:
            raise InputError("graph is True, and the step has too many scheduled numbers; leave graph out")
        self.numbers.append(number := _Number(make, self._slots.pop()))
        with torch.no_grad():
            self._fill(number.tensor, value)
        return number.tensor


class GraphedStep:
    """Calls a step: as usual at first, then by replaying what was recorded.

    Raises InputError for what cannot be recorded.
    """

    def __init__(self, step: Step):
        self._step, self._runtime = step, step.runtime
        self._kinds: dict[Key, list[_Kind]] = {}
        self._settings: Key = ()
        self._state: Any = None  # what the settings know by its identity, which nothing else may take
        self._changes = 0
        _require_recordable(step)
        device = self._runtime.device
        self._backend: Backend = CudaGraph(device) if device.type == "cuda" else Tape()
        self._runtime.on_device = True

    def __call__(self, batch: Batch) -> StepOutput:
        """Make one step."""
        rt = self._runtime
        tensors, spec, key = _flattened(batch)
        self._check_settings()
        kinds = self._kinds.setdefault(key, [])
        kind = self._matching(kinds)
        if kind is not None and kind.recorded is not None:
            self._changes = 0
            return self._replayed(kind.recorded, tensors)
        if kind is not None and kind.steps >= _WARM and rt.passes.steps >= CHECKED_STEPS:
            kind.recorded = self._record(tensors, spec)
            return _copied(kind.recorded.output)
        recorder = self._recorder(recording=False)
        out = self._make(recorder, lambda: self._step.run(batch))
        kind = next((k for k in kinds if k.answers == recorder.answers), None)
        if kind is None:
            kinds.append(kind := _Kind(recorder.questions, recorder.answers))
        kind.steps += 1
        return out

    def _matching(self, kinds: list[_Kind]) -> _Kind | None:
        """Return the kind that this step is of, None if it is a new one."""
        rt = self._runtime
        recorder = rt.recorder = Recorder(rt.optimizer)
        rt.passes.steps += 1  # as within the step
        try:
            for kind in kinds:
                pairs = zip(kind.questions, kind.answers, strict=True)
                if all(recorder.answer(question) == answer for question, answer in pairs):
                    return kind
            return None
        finally:
            rt.passes.steps -= 1
            rt.recorder = None

    def _check_settings(self) -> None:
        """Forget what was recorded if the parameters, the optimizer's settings or its state are others."""
        settings = _settings(self._step)
        if settings == self._settings:
            return
        if any(kind.recorded for kinds in self._kinds.values() for kind in kinds):
            self._changes += 1
        if self._changes > _CHANGES:
            changed = [
                name for (name, *_), old in zip(settings[0], self._settings[0], strict=False) if old[0] == name
            ]
            raise InputError(
                f"graph is True, and the optimizer's settings ({', '.join(sorted(set(changed)))}) other than the "
                "learning rate, or its parameters, change in every step; leave graph out"
            )
        self.forget()
        optimizer, self._settings = self._runtime.optimizer, settings
        self._state = (
            states_of(optimizers_of(self._runtime)),
            [list(group.values()) for group in optimizer.param_groups],
        )

    def forget(self) -> None:
        """Release what was recorded, as after state was loaded."""
        self._kinds = {}
        self._backend.forget()

    def _record(self, tensors: list[Tensor], spec: Callable[[list[Tensor]], Batch]) -> _Recorded:
        """Make a step that is recorded."""
        rt, step = self._runtime, self._step
        inputs = [torch.empty_like(t, device=rt.device, requires_grad=False).copy_(t.detach()) for t in tensors]
        recorder = self._recorder(recording=True)
        modules = [*step.state.modules(), *(m for net in rt.with_state for m in net.modules())]
        before, passes = _counts(modules), dict(vars(rt.passes))
        for name in ("forward", "backward", "updates"):
            setattr(rt.passes, name, 0)
        try:
            with noted() as snapshots:
                output = self._make(recorder, lambda: step.run(spec(inputs)))
        except InputError:
            raise
        except Exception as error:
            cause: BaseException = error  # the end of a recording that has failed is another error
            while cause.__context__ is not None:
                cause = cause.__context__
            reason = " ".join(str(cause).split())[:200]
            raise InputError(
                f"graph is True, and a step of {type(step.method).__name__} cannot be recorded ({reason}); "
                "leave graph out"
            ) from error
        finally:
            counted = dict(vars(rt.passes))
            for name in ("forward", "backward", "updates"):
                setattr(rt.passes, name, passes[name] + counted[name])
        after = _counts(modules)
        counts = [(m, name, value - before[m][name]) for m in after for name, value in after[m].items()]
        counted.pop("steps")
        changed = [count for count in counts if count[2]]
        self._set(recorder.numbers)
        return _Recorded(inputs, recorder.numbers, output, self._backend.finish(), counted, changed, snapshots)

    def _recorder(self, *, recording: bool) -> Recorder:
        rt = self._runtime
        wide = torch.float64 if rt.params[0].dtype == torch.float64 else torch.float32
        slots = list(torch.zeros(_NUMBERS, dtype=wide, device=rt.device).unbind())
        return Recorder(rt.optimizer, slots, self._backend.fill if recording else Tensor.fill_, recording)

    def _make(self, recorder: Recorder, run: Callable[[], StepOutput]) -> StepOutput:
        """Make a step whose numbers are tensors, recorded or not, so that both have the same bits."""
        rt, recording = self._runtime, recorder.recording
        averages = [m for m in self._step.state.modules() if isinstance(m, WeightAverage)]
        rng, rt.recorder = rt.pass_rng, recorder
        try:
            tensors = _as_tensors(rt.optimizer, rt.device, recorder.numbers, recording)
            with tensors, _flags(averages, rt.checks, recording):
                rt.pass_rng = self._backend.begin(rng, list(rt.generators.values()), recording)
                return self._backend.record(run) if recording else self._backend.warm_up(run)
        finally:
            rt.pass_rng, rt.recorder = rng, None

    def _set(self, numbers: list[_Number]) -> None:
        """Set the numbers of the present step."""
        rt = self._runtime
        rt.recorder = Recorder(rt.optimizer)  # a number may ask where training is
        try:
            with torch.no_grad():
                rt.recorder.answer(lambda: list(map(_Number.set, numbers)))
        finally:
            rt.recorder = None

    def _replayed(self, recorded: _Recorded, tensors: list[Tensor]) -> StepOutput:
        """Make a step by replaying a recorded one."""
        rt = self._runtime
        with torch.no_grad():
            for static, t in zip(recorded.inputs, tensors, strict=True):
                static.copy_(t, non_blocking=True)
            rt.passes.steps += 1
        self._set(recorded.numbers)
        recorded.replay()
        for name, value in recorded.passes.items():
            setattr(rt.passes, name, getattr(rt.passes, name) + value)
        for module, name, more in recorded.counts:
            setattr(module, name, getattr(module, name) + more)
        return _copied(recorded.output)


def _require_recordable(step: Step) -> None:
    """Raise InputError for a step whose host decides too much."""
    rt, options, name = step.runtime, step.runtime.options, type(step.method).__name__
    optimizer = rt.optimizer
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    hooks = any(getattr(one, kind, None) for one in (optimizer, *parts_of(optimizer)) for kind in kinds)
    capturable = all(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    for holds, reason in (
        (rt.device.type in ("cpu", "cuda"), f"the model is on {rt.device}; leave graph out"),
        (type(rt.parallel) is SingleProcess, "several processes train the model; leave graph out"),
        (not any(map(sharded, rt.params)), "the model is sharded; leave graph out"),
        (not step.method.on_host, f"{name} needs the host in each step: {step.method.on_host}; leave graph out"),
        (not reuses_outputs(rt.model), "the model is compiled with CUDA graphs of its own; compile it without"),
        (options.weigh is len, "weigh is a function of the batch, which a graph would not call; leave one out"),
        (not hooks, f"{type(optimizer).__name__} has step hooks, which a graph would not call; remove them"),
        (
            capturable,
            f"{type(optimizer).__name__} reads its learning rate on the host; make it with fused=True (or "
            "capturable=True), or leave graph out",
        ),
    ):
        if not holds:
            raise InputError(f"graph is True, and {reason}")


def _flattened(batch: Batch) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch], Key]:
    """Return a batch's tensors, a function that makes a batch of others, and its kind; refuses what has none."""
    if len(batch.parts()) > 1:
        raise InputError("graph is True and the batch is a list of micro-batches; give it whole, with microbatch=")
    leaves, tree = tree_flatten((batch.x, batch.y, batch.index, dict(batch.extra)))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    for leaf in others:
        if not (leaf is None or isinstance(leaf, bool | int | float | str)):
            raise InputError(f"graph is True and the batch has a {type(leaf).__name__}; give tensors")
    tensors = [leaves[i] for i in where]

    def batch_of(values: list[Tensor], tree: TreeSpec = tree) -> Batch:
        filled = list(leaves)
        for i, value in zip(where, values, strict=True):
            filled[i] = value
        return Batch(*tree_unflatten(filled, tree))

    kinds = tuple((t.shape, t.dtype, t.device, t.stride()) for t in tensors)
    return tensors, batch_of, (kinds, tuple(map(repr, others)), str(tree))


def _settings(step: Step) -> Key:
    """Return what a graph has fixed: parameters, the optimizer's settings and state, modes."""
    rt = step.runtime
    optimizer = rt.optimizer
    groups = tuple(
        (name, id(value) if isinstance(value, Tensor) else repr(value))
        for group in optimizer.param_groups
        for name, value in group.items()
        if name not in ("params", "initial_lr") and not (name == "lr" and isinstance(value, float | int))
    )
    params = [p for group in optimizer.param_groups for p in group["params"]]
    places = tuple((id(p), p.data_ptr(), p.requires_grad) for p in params)
    states = states_of(optimizers_of(rt))
    entries = (tuple(map(id, states)), sum(len(entry) for state in states for entry in state.values()))
    return groups, places, entries, tuple(m.training for net in rt.with_state for m in net.modules())


def _counts(modules: list[nn.Module]) -> dict[nn.Module, dict[str, int]]:
    """Return the whole numbers that modules count on the host."""
    return {m: {k: v for k, v in vars(m).items() if type(v) is int} for m in modules}


@contextmanager
def _as_tensors(
    optimizer: torch.optim.Optimizer, device: torch.device, rates: list[_Number], recording: bool
) -> Iterator[None]:
    """Have the learning rates in tensors for a while; a GPU records Adam only as ``capturable``."""
    for one in (optimizer, *parts_of(optimizer)):
        # or it warns, in the steps before, that nothing is recorded
        vars(one)["_warned_capturable_if_run_uncaptured"] = True
    before = [(group, group["lr"], group.get("capturable")) for group in optimizer.param_groups]
    for group, rate, capturable in before:
        if isinstance(rate, float | int):
            # fused kernels on a GPU read single precision
            kind = torch.float32 if device.type == "cuda" else torch.float64
            tensor = torch.full((), rate, dtype=kind, device=device)
            rates.append(_Number(partial(_rate, group), tensor))
            group["lr"] = tensor
        if capturable is False and recording:
            group["capturable"] = device.type == "cuda"
    try:
        yield
    finally:
        for group, rate, capturable in before:
            group["lr"] = rate
            if capturable is not None:
                group["capturable"] = capturable


def _rate(group: dict[str, Any]) -> float:
    return float(group["lr"])


@contextmanager
def _flags(averages: list[WeightAverage], checks: Any, recording: bool) -> Iterator[None]:
    """Have nothing prepared outside of the graph that is different in each step."""
    checks.recording = recording
    for average in averages:
        average.comparing = not recording
    try:
        yield
    finally:
        checks.recording = False
        for average in averages:
            average.comparing = True


def _copied(out: StepOutput) -> StepOutput:
    """Return an output that the next replay does not overwrite."""
    several = isinstance(out.logits, list)
    logits = [z.clone() for z in out.logits] if several else out.logits.clone()
    flag = out.skip_flag
    return StepOutput(out.loss.clone(), logits, flag.clone() if isinstance(flag, Tensor) else flag)
