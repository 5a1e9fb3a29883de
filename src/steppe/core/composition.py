"""Methods composed of methods: one's step on another's objective, and one that is active for a time only."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from steppe.core.method import (
    Batch,
    Method,
    Runtime,
    StepOutput,
    hyper,
    name_of,
    overrides,
    plain_step,
    require,
)
from steppe.core.method.contract import parts_of
from steppe.core.numerics.vector import Vec
from steppe.core.schedules import DECAY, Ramp, TrainingProgress, no_decay
from steppe.errors import InputError


class _OfParts:
    """An attribute that a combination has from its parts: that of the first part that has one."""

    def __set_name__(self, owner: type[Method], name: str) -> None:
        self.name = name

    def __get__(self, method: Method | None, owner: type[Method]) -> Any:
        if method is None:
            return self
        values = [getattr(part, self.name) for part in parts_of(method)]
        return next(filter(None, values), values[0])


@dataclass(frozen=True)
class On(Method):
    """One method's step on another's objective: ``On(SAM(), MESA())``; gradient transforms of both apply.

    ``rule`` defines how an update is made; ``base`` what is minimised, what is remembered and what is deployed. If
    only one of them overrides the step, its step is taken; if both do, the pair is refused.

    Raises InputError if both define the step, the objective, the network that is trained or what is deployed, or
    if one cannot train the several networks of the other.
    """

    local: ClassVar[Any] = _OfParts()
    whole: ClassVar[Any] = _OfParts()
    single: ClassVar[Any] = _OfParts()
    on_host: ClassVar[Any] = _OfParts()
    mixes: ClassVar[Any] = _OfParts()
    moves: ClassVar[Any] = _OfParts()

    rule: Method
    base: Method

    def check(self) -> None:
        """Refuse pairs in which a part of one method would be silently ignored."""
        parts = {
            "step": ("step",),
            "objective": ("objective",),
            "network that is trained": ("build",),
            "deployed weights": ("deployed_weights",),
        }
        for what, hooks in parts.items():
            self._only_one(what, *(_leaf(m, hooks) for m in (self.rule, self.base)))
        # methods that build several networks predict with one of them, whatever its weights are
        predict = [_leaf(m, _PREDICT) for m in (self.rule, self.base)]
        free = [m and (None if overrides(m, "build") else m) for m in predict]
        weights = [_leaf(m, ("deployed_weights",)) for m in (self.rule, self.base)]
        self._only_one("deployed model", free[0] or weights[0], free[1] or weights[1])
        for one, other in ((self.rule, self.base), (self.base, self.rule)):
            if one.single and overrides(other, "build"):
                several = _leaf(other, ("build",))
                raise InputError(
                    f"{name_of(_leaf(one, ('step',)) or one)} cannot train the several networks of "
                    f"{name_of(several or other)}: {one.single}; combine it with methods of one network"
                )

    def _only_one(self, what: str, rule: Method | None, base: Method | None) -> None:
        if rule and base:
            raise InputError(
                f"{name_of(rule)} and {name_of(base)} both define the {what}; "
                "combine methods that change different parts, such as sam+gc"
            )

    def _holder(self, *hooks: str) -> str:
        """Return which part overrides one of these, the base by default."""
        return "rule" if _leaf(self.rule, hooks) else "base"

    def _part(self, role: str, state: nn.Module) -> tuple[Method, nn.Module]:
        """Return a part and its own state."""
        return self.rule if role == "rule" else self.base, state.get_submodule(role)

    @property
    def views(self) -> int:
        return max(self.rule.views, self.base.views)

    @property
    def needs_views(self) -> bool:
        return self.rule.needs_views or self.base.needs_views

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return (self.rule if self._holder("build") == "rule" else self.base).build(new_model)

    def init(self, net: nn.Module) -> nn.Module:
        return nn.ModuleDict({"rule": self.rule.init(net), "base": self.base.init(net)})

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        part, own = self._part(self._holder("objective"), state)
        return part.objective_or_plain(batch, own, rt)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        part, own = self._part(self._holder("step"), state)
        return part.step_or_plain(batch, own, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        return self.rule.transform(self.base.transform(grads, rt), rt)

    def before(self, batch: Batch, state: nn.Module, rt: Runtime) -> None:
        for role in ("base", "rule"):
            part, own = self._part(role, state)
            part.before(batch, own, rt)

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Have the parts that move the weights after the update do so first, then those that remember weights."""
        for part, own in sorted(_leaves(self, state), key=lambda leaf: _turn(leaf[0])):
            part.after(batch, out, own, rt)

    def memory_bytes(self, samples: int, classes: int) -> int:
        return self.rule.memory_bytes(samples, classes) + self.base.memory_bytes(samples, classes)

    def allocate(self, state: nn.Module, samples: int, classes: int) -> None:
        for role in ("rule", "base"):
            part, own = self._part(role, state)
            part.allocate(own, samples, classes)

    def observe_targets(self, state: nn.Module, y: Any) -> None:
        for role in ("rule", "base"):
            part, own = self._part(role, state)
            part.observe_targets(own, y)

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        """Return the context of the part that defines one."""
        part, own = self._part(self._holder("deployed_weights"), state)
        return part.deployed_weights(net, own)

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Predict as the part that overrides it, the base by default, with the weights that are deployed."""
        with self._deployed(net, state) as (part, own):
            return part.predict(net, own, x)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        with self._deployed(net, state) as (part, own):
            return part.outputs(net, own, x)

    def choose(self, state: nn.Module, ranks: Mapping[str, Any]) -> str | None:
        names = [part.choose(own, ranks) for part, own in (self._part(role, state) for role in ("rule", "base"))]
        return next(filter(None, names), None)

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        with self._deployed(net, state) as (part, own):
            return part.deployed_model(net, own, new_model)

    @contextmanager
    def _deployed(self, net: nn.Module, state: nn.Module) -> Iterator[tuple[Method, nn.Module]]:
        role = self._holder(*_PREDICT)
        # the part that predicts does so at its own deployed weights
        other, state_of_other = self._part("base" if role == "rule" else "rule", state)
        with other.deployed_weights(net, state_of_other):
            yield self._part(role, state)


_PREDICT = ("predict", "outputs", "deployed_model")


def _leaf(method: Method, hooks: Sequence[str]) -> Method | None:
    """Return the method that overrides one of these, of those that a method is composed of; None if none does."""
    if inner := parts_of(method):
        return next((leaf for i in inner if (leaf := _leaf(i, hooks))), None)
    return method if any(overrides(method, hook) for hook in hooks) else None


def _leaves(method: Method, state: nn.Module) -> Iterator[tuple[Method, nn.Module]]:
    """Yield the methods that a method is composed of, the base first, each with its own state."""
    if isinstance(method, On):
        for role in ("base", "rule"):
            yield from _leaves(*method._part(role, state))
    elif isinstance(method, ActiveWindow):
        yield from _leaves(method.method, state)
    else:
        yield method, state


def _turn(method: Method) -> int:
    """Return when a method's turn after an update is, whatever the order in which the parts are named.

    Students are fused before the weights are set to an average; means of the weights follow.
    """
    # what moves the weights sets their running statistics too; ``moves`` is empty for fusion of equal students
    if not (method.mixes or method.moves):
        return 2
    return 0 if overrides(method, "build") else 1


def parts(method: Method) -> Iterator[Method]:
    """Yield the methods that a combination consists of; one that is active for a time only counts as a whole."""
    inner = [] if isinstance(method, ActiveWindow) else parts_of(method)
    for part in inner:
        yield from parts(part)
    if not inner:
        yield method


@dataclass(frozen=True)
class ActiveWindow(Method):
    """A method that is active from ``start`` to ``stop`` on every ``every``-th step; the others are plain steps.

    Steps count from 0 and ``stop`` is the first one without the method. ``start`` and ``stop`` below 1 are
    shares of the training, whose length `bind` then needs (``steps``). ``every`` counts from ``start``, or from
    step 0 if that is a share; ``spread`` instead is the share of the steps that are the method's, evenly spread.
    ``tail`` is the last share of the training, in the place of ``start``, or 'decay': from where the learning rate
    begins to decay (``decay_start`` of `bind`). State and deployment of the method are not affected.

    Raises InputError if the window is empty or ``every`` below 1.
    """

    controls: ClassVar[Any] = _OfParts()
    local: ClassVar[Any] = _OfParts()
    whole: ClassVar[Any] = _OfParts()
    single: ClassVar[Any] = _OfParts()
    on_host: ClassVar[Any] = _OfParts()
    mixes: ClassVar[Any] = _OfParts()
    moves: ClassVar[Any] = _OfParts()

    method: Method
    start: float = hyper(0, "the first step of the method", amount=True)
    stop: float | None = hyper(None, "the first step without it", above=0, amount=True)
    every: int = hyper(1, "one step in so many is the method's", minimum=1, remedy="at least 1")
    tail: float | str | None = hyper(
        None,
        "the last share of the training, or that in which the learning rate decays",
        valid=lambda tail: tail == DECAY or (not isinstance(tail, str) and 0 < tail < 1),
        remedy="a share above 0 and below 1, or 'decay'",
        added=True,
    )
    spread: float | None = hyper(None, "share of the steps, spread evenly", above=0, maximum=1, added=True)

    def check(self) -> None:
        """Refuse windows without a step, and methods that are not one network's."""
        alone = self.start == 0 and self.stop is None
        require(self, "tail", self.tail is None or alone, "it without start and stop, or leave it out")
        require(self, "spread", self.spread is None or self.every == 1, "it without every, or leave it out")
        if self.stop is not None:
            same_unit = (self.stop < 1) == (self.start < 1)
            require(self, "stop", not same_unit or self.stop > self.start, f"more than start, {self.start:g}")
        if overrides(self.method, "build"):
            raise InputError(
                f"{name_of(self.method)} builds what it trains and cannot be active for a time only; "
                "leave start, stop, tail, every and spread out"
            )
        if not any(overrides(self.method, part) for part in ("step", "objective", "transform")):
            raise InputError(
                f"{name_of(self.method)} makes plain steps, so that a window has no effect; "
                "leave start, stop, tail, every and spread out"
            )

    def active(self, now: TrainingProgress) -> bool:
        """Return whether this step is the method's."""
        over = self.stop is not None and now.reached(self.stop, "stop")
        start = self.first(now)
        if over or not now.reached(start, "start" if self.tail is None else "tail"):
            return False
        count = now.step - (int(start) if start >= 1 else 0)
        if self.spread is not None:
            before, after = (math.floor(n * self.spread + 1e-9) for n in (count, count + 1))
            return after > before
        return count % self.every == 0

    def first(self, now: TrainingProgress) -> float:
        """Return the amount of training at which the window begins."""
        if self.tail != DECAY:
            # 1 - 0.9 has a last digit of its own
            return self.start if self.tail is None else round(1 - float(self.tail), 12)
        if now.decay_start is None:
            raise no_decay()
        return now.decay_start

    def done(self, now: TrainingProgress) -> float:
        """Return the fraction of the window that is done."""
        return now.part_between(self.first(now), self.stop, "ramp")

    @contextmanager
    def _inside(self, rt: Runtime) -> Iterator[None]:
        """Have schedules know the window."""
        outer, rt.window = rt.window, self.done if self.has_ramps else None
        try:
            yield
        finally:
            rt.window = outer

    @cached_property
    def has_ramps(self) -> bool:
        """Whether a setting of the method follows the window."""
        return any(isinstance(value, Ramp) for part in parts(self.method) for value in vars(part).values())

    def active_steps(
        self, total: int, lr_at: Callable[[float], float], decay_start: float | None = None
    ) -> list[int]:
        """Return the steps of the method in a training of ``total`` steps; ``lr_at`` is the rate at a share."""
        now = (TrainingProgress(t, t / total, lr_at(t / total), decay_start) for t in range(total))
        return [point.step for point in now if self.active(point)]

    @property
    def views(self) -> int:
        return self.method.views

    @property
    def needs_views(self) -> bool:
        return self.method.needs_views

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        return self.method.build(new_model)

    def init(self, net: nn.Module) -> nn.Module:
        state: nn.Module = self.method.init(net)
        return state

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        if not rt.decide(lambda: self.active(rt.now)):
            return rt.supervised(batch)
        with self._inside(rt):
            return self.method.objective_or_plain(batch, state, rt)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        if not rt.decide(lambda: self.active(rt.now)):
            return plain_step(batch, rt)
        with self._inside(rt):
            return self.method.step_or_plain(batch, state, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        if not rt.decide(lambda: self.active(rt.now)):
            return grads
        with self._inside(rt):
            return self.method.transform(grads, rt)

    def before(self, batch: Batch, state: nn.Module, rt: Runtime) -> None:
        self.method.before(batch, state, rt)

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        self.method.after(batch, out, state, rt)

    def memory_bytes(self, samples: int, classes: int) -> int:
        return self.method.memory_bytes(samples, classes)

    def allocate(self, state: nn.Module, samples: int, classes: int) -> None:
        self.method.allocate(state, samples, classes)

    def observe_targets(self, state: nn.Module, y: Any) -> None:
        self.method.observe_targets(state, y)

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        return self.method.predict(net, state, x)

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        return self.method.deployed_weights(net, state)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        return self.method.outputs(net, state, x)

    def choose(self, state: nn.Module, ranks: Mapping[str, Any]) -> str | None:
        return self.method.choose(state, ranks)

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        return self.method.deployed_model(net, state, new_model)
