"""A third party's optimizer, used as its users use it.

There are two forms. With ``first_step`` and ``second_step``, the user runs both passes:

    loss(x).backward(); optimizer.first_step(zero_grad=True)
    loss(x).backward(); optimizer.second_step(zero_grad=True)

Any other gets a closure that clears the gradients, runs one pass and returns the loss, as `torch.optim` documents
for ``step(closure)``. Where a form leaves open what to do, the check does not apply.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.errors import InputError
from steppe.testing import fixtures
from steppe.testing.fixtures import Make
from steppe.testing.oracles import REFERENCES
from steppe.testing.oracles.harness import ReferenceStep
from steppe.testing.result import NotApplicable
from steppe.testing.subjects import Session, Subject, SubjectOptions

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_two_step(kind: Any) -> bool:
    """Return whether a class has ``first_step`` and ``second_step``."""
    return all(callable(getattr(kind, step, None)) for step in ("first_step", "second_step"))


class ThirdParty(Subject):
    """An optimizer class in the form 'two-step' or 'closure', by default the one that its methods show.

    Raises InputError if it cannot be made from parameters, a base optimizer and its settings.
    """

    ours = False

    def __init__(
        self,
        kind: Callable[..., Any],
        name: str | None = None,
        form: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self.kind, self.settings = kind, dict(settings or {})
        self.name = name or kind.__name__
        self.form = form or ("two-step" if is_two_step(kind) else "closure")
        try:
            self.make(fixtures.smooth(), fixtures.SGD)
        except Exception as error:
            raise InputError(
                f"{self.name} cannot be made from (params, base_optimizer=torch.optim.SGD, lr=0.1): {error}; "
                "give a class that derives from it and can"
            ) from None

    @property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the class."""
        return inspect.signature(self.kind).parameters

    def make(self, model: nn.Module, base: fixtures.BaseOptimizer) -> Any:
        """Make the optimizer with the arguments of its signature."""
        any_name = any(p.kind is p.VAR_KEYWORD for p in self.arguments.values())
        settings = {k: v for k, v in base.settings.items() if any_name or k in self.arguments}
        if "model" in self.arguments:
            settings["model"] = model
        if "base_optimizer" not in self.arguments:
            return self.kind(model.parameters(), **settings, **self.settings)
        try:
            return self.kind(model.parameters(), base_optimizer=base.kind, **settings, **self.settings)
        except TypeError:
            optimizer = base.make(model.parameters())
            return self.kind(model.parameters(), base_optimizer=optimizer, **self.settings)

    def start(self, make: Make, options: SubjectOptions) -> Session:
        if options.m is not None:
            raise NotApplicable("has no m-sharpness within a process")
        if self.form == "closure":
            if options.precision == "fp16":
                raise NotApplicable("torch's GradScaler does not take closures")
            if options.clip is not None:
                raise NotApplicable("step(closure) has no place between the last pass and the update")
            if options.sync == "local":
                raise NotApplicable("step(closure) does not show which pass is to run without communication")
        return _Session(self, make(), options)

    def at_limit(self) -> Subject:
        """Return it with rho = 0, if it has a rho."""
        if "rho" not in self.arguments:
            raise NotApplicable("has no radius rho that could be 0")
        return ThirdParty(self.kind, self.name, self.form, self.settings | {"rho": 0.0})

    def reference(self) -> tuple[ReferenceStep, Mapping[str, Any]]:
        """Return the equation of SAM for a class of the name SAM."""
        if self.kind.__name__ != "SAM" or "rho" not in self.arguments:
            raise NotApplicable("there is a float64 restatement only for what calls itself SAM")
        return REFERENCES["sam"].step, {"rho": self.settings.get("rho", self.arguments["rho"].default)}


class _Session(Session):
    def __init__(self, subject: ThirdParty, net: nn.Module, options: SubjectOptions):
        self.subject = subject
        super().__init__(net, options)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        self.theirs = self.subject.make(self.model, self.options.base)
        inner: torch.optim.Optimizer = getattr(self.theirs, "base_optimizer", self.theirs)
        return inner

    def _step(self, parts: list[Batch]) -> bool:
        if self.subject.form == "closure":
            self.theirs.step(lambda: self._closure(parts))
            self.theirs.zero_grad()
            return False
        local = self.options.sync == "local"
        with self.model.no_sync() if local else nullcontext():  # type: ignore[operator]
            self._pass(parts)
        self.scaler.unscale_(self.theirs)
        self.theirs.first_step(zero_grad=True)
        # without an update in between, the scaler refuses to unscale a second time
        self.scaler.update()
        self._pass(parts)
        self.scaler.unscale_(self.theirs)
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.theirs.second_step(zero_grad=True)
        self.scaler.update()
        return False

    def _closure(self, parts: list[Batch]) -> Tensor:
        self.theirs.zero_grad()
        return self._pass(parts)

    def _pass(self, parts: list[Batch]) -> Tensor:
        precision = self.options.precision
        total = torch.zeros((), device=self.options.device)
        for part in parts:
            half = precision in _HALF
            with torch.autocast(self.options.device, _HALF[precision]) if half else nullcontext():
                logits = self.model(part.x)
            loss = F.cross_entropy(logits.float() if half else logits, part.y) / len(parts)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def stateful(self) -> dict[str, Any]:
        return {"optimizer": self.theirs, "scaler": self.scaler}
