"""Methods made of methods: one's step on another's objective, and one that works only for a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import Method, name_of, overrides, plain_step, require
from steppe.core.numerics.vector import Vec
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.schedules import TrainingProgress
from steppe.errors import InputError


@dataclass(frozen=True)
class On(Method):
    """One method's step on another's objective: ``On(SAM(), MESA())``; gradient transforms of both apply.

    ``rule`` says how an update is made, ``base`` what is minimised, remembered and deployed. If only one of
    them changes the step, its step is taken; if both do, the pair is refused.

    Raises InputError if both change the step, or both the objective.
    """

    rule: Method
    base: Method

    def check(self) -> None:
        """Refuse pairs in which one method would silently lose its idea."""
        for part in ("step", "objective"):
            if overrides(self.rule, part) and overrides(self.base, part):
                raise InputError(
                    f"{name_of(self.rule)} and {name_of(self.base)} both define the {part}; "
                    "combine methods that change different parts, such as sam+gc"
                )
        for said in ("local", "whole", "mixes"):
            object.__setattr__(self, said, getattr(self.rule, said) or getattr(self.base, said))

    def _holder(self, part: str) -> Method:
        return self.rule if overrides(self.rule, part) else self.base

    @property
    def views(self) -> int:
        """As many as the base takes."""
        return self.base.views

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Build as the base does."""
        return self.base.build(new_model)

    def init(self, net: nn.Module) -> nn.Module:
        """Remember what both remember."""
        return nn.ModuleDict({"rule": self.rule.init(net), "base": self.base.init(net)})

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Minimise the objective of whichever method defines one."""
        holder = self._holder("objective")
        return holder.objective(batch, self._state(holder, state), rt)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Step as whichever method defines a step."""
        holder = self._holder("step")
        return holder.step(batch, self._state(holder, state), rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Apply the base's transform, then the rule's."""
        return self.rule.transform(self.base.transform(grads, rt), rt)

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Let both remember."""
        for part in (self.base, self.rule):
            part.after(batch, out, self._state(part, state), rt)

    def memory_bytes(self, samples: int, classes: int) -> int:
        """Keep what both keep."""
        return self.rule.memory_bytes(samples, classes) + self.base.memory_bytes(samples, classes)

    def allocate(self, state: nn.Module, samples: int, classes: int) -> None:
        """Take what both ask for."""
        for part in (self.rule, self.base):
            part.allocate(self._state(part, state), samples, classes)

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        """Put in the network's place what the rule does, else what the base does."""
        part = self.rule if overrides(self.rule, "deployed_weights") else self.base
        return part.deployed_weights(net, self._state(part, state))

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy what the one that defines a prediction deploys, the base by default.

        If both do, that is what the base deploys of the weights that the rule puts in place.
        """
        holder, placed = self._deploying(net, state)
        with placed:
            return holder.predict(net, self._state(holder, state), x)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report what the one that deploys reports."""
        holder, placed = self._deploying(net, state)
        with placed:
            return holder.outputs(net, self._state(holder, state), x)

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy alone what is deployed."""
        holder, placed = self._deploying(net, state)
        with placed:
            return holder.deployed_model(net, self._state(holder, state), new_model)

    def _deploying(self, net: nn.Module, state: nn.Module) -> tuple[Method, AbstractContextManager[None]]:
        both = all(overrides(part, "predict") for part in (self.rule, self.base))
        if both and overrides(self.rule, "deployed_weights"):
            return self.base, self.rule.deployed_weights(net, self._state(self.rule, state))
        return self._holder("predict"), nullcontext()

    def _state(self, part: Method, state: nn.Module) -> nn.Module:
        return state.get_submodule("rule" if part is self.rule else "base")


@dataclass(frozen=True)
class ActiveWindow(Method):
    """A method that works from ``start`` to ``stop`` on every ``every``-th step; the others are plain steps.

    Steps count from 0 and ``stop`` is the first one without the method. ``start`` and ``stop`` below 1 are
    shares of the training, whose length `bind` is then told. ``every`` counts from ``start``, or from step 0 if
    that is a share. What the method remembers and deploys goes on all the time.

    Raises InputError if the window is empty or ``every`` below 1.
    """

    method: Method
    start: float = 0
    stop: float | None = None
    every: int = 1

    def check(self) -> None:
        """Refuse windows that no step is in."""
        require(self, "start", self.start >= 0, "a step number, or a share of the training below 1")
        require(self, "every", self.every >= 1, "at least 1")
        units = self.stop is not None and (self.stop < 1) == (self.start < 1)
        wanted = "a step number, or a share of the training below 1"
        require(self, "stop", self.stop is None or self.stop > 0, wanted)
        if units and self.stop is not None:
            require(self, "stop", self.stop > self.start, f"more than start, {self.start:g}")
        for said in ("controls", "local", "whole", "mixes"):
            object.__setattr__(self, said, getattr(self.method, said))
        if overrides(self.method, "build"):
            raise InputError(
                f"{name_of(self.method)} builds what it trains and cannot work for a time only; "
                "leave start, stop and every out"
            )

    def active(self, now: TrainingProgress) -> bool:
        """Return whether this step is the method's."""
        over = self.stop is not None and now.reached(self.stop, "stop")
        if over or not now.reached(self.start, "start"):
            return False
        first = int(self.start) if self.start >= 1 else 0
        return (now.step - first) % self.every == 0

    @property
    def views(self) -> int:
        """As many as the method takes."""
        return self.method.views

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Build as the method does."""
        return self.method.build(new_model)

    def init(self, net: nn.Module) -> nn.Module:
        """Remember what the method remembers."""
        return self.method.init(net)

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Minimise the method's objective in its steps, the loss alone in the others."""
        return self.method.objective(batch, state, rt) if self.active(rt.now) else rt.supervised(batch)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Make the method's step, or a plain one."""
        return self.method.step(batch, state, rt) if self.active(rt.now) else plain_step(batch, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Transform as the method does in its steps."""
        return self.method.transform(grads, rt) if self.active(rt.now) else grads

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Let the method remember."""
        self.method.after(batch, out, state, rt)

    def memory_bytes(self, samples: int, classes: int) -> int:
        """Keep what the method keeps."""
        return self.method.memory_bytes(samples, classes)

    def allocate(self, state: nn.Module, samples: int, classes: int) -> None:
        """Take what the method asks for."""
        self.method.allocate(state, samples, classes)

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy what the method deploys."""
        return self.method.predict(net, state, x)

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        """Put in the network's place what the method does."""
        return self.method.deployed_weights(net, state)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report what the method reports."""
        return self.method.outputs(net, state, x)

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy alone what the method deploys."""
        return self.method.deployed_model(net, state, new_model)
