"""Methods made of methods: one's step on another's objective, and one that works only for a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steppe.batch import Batch
from steppe.errors import InputError
from steppe.method import Method, descend, name_of, overrides, require
from steppe.runtime import Out, Runtime
from steppe.schedule import Now
from steppe.vec import Vec


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

    def _holder(self, part: str) -> Method:
        return self.rule if overrides(self.rule, part) else self.base

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Build as the base does."""
        return self.base.build(new_model)

    def init(self, net: nn.Module) -> nn.Module:
        """Remember what both remember."""
        return nn.ModuleDict({"rule": self.rule.init(net), "base": self.base.init(net)})

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Minimise the objective of whichever method defines one."""
        holder = self._holder("objective")
        return holder.objective(batch, self._state(holder, state), rt)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Step as whichever method defines a step."""
        holder = self._holder("step")
        return holder.step(batch, self._state(holder, state), rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Apply the base's transform, then the rule's."""
        return self.rule.transform(self.base.transform(grads, rt), rt)

    def after(self, batch: Batch, out: Out, state: nn.Module, rt: Runtime) -> None:
        """Let both remember."""
        for part in (self.base, self.rule):
            part.after(batch, out, self._state(part, state), rt)

    def footprint(self, samples: int, classes: int) -> int:
        """Keep what both keep."""
        return self.rule.footprint(samples, classes) + self.base.footprint(samples, classes)

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy what the one that defines a prediction deploys, the base by default."""
        holder = self._holder("predict")
        return holder.predict(net, self._state(holder, state), x)

    def _state(self, part: Method, state: nn.Module) -> nn.Module:
        return state.get_submodule("rule" if part is self.rule else "base")


@dataclass(frozen=True)
class When(Method):
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
        object.__setattr__(self, "controls", self.method.controls)

    def active(self, now: Now) -> bool:
        """Return whether this step is the method's."""
        over = self.stop is not None and now.reached(self.stop, "stop")
        if over or not now.reached(self.start, "start"):
            return False
        first = int(self.start) if self.start >= 1 else 0
        return (now.step - first) % self.every == 0

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Build as the method does."""
        return self.method.build(new_model)

    def init(self, net: nn.Module) -> nn.Module:
        """Remember what the method remembers."""
        return self.method.init(net)

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Minimise the method's objective in its steps, the loss alone in the others."""
        return self.method.objective(batch, state, rt) if self.active(rt.now) else rt.supervised(batch)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Make the method's step, or a plain one."""
        return self.method.step(batch, state, rt) if self.active(rt.now) else descend(batch, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Transform as the method does in its steps."""
        return self.method.transform(grads, rt) if self.active(rt.now) else grads

    def after(self, batch: Batch, out: Out, state: nn.Module, rt: Runtime) -> None:
        """Let the method remember."""
        self.method.after(batch, out, state, rt)

    def footprint(self, samples: int, classes: int) -> int:
        """Keep what the method keeps."""
        return self.method.footprint(samples, classes)

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy what the method deploys."""
        return self.method.predict(net, state, x)
