"""A third party's optimizer, used as its users use it.

Two forms are known. With ``first_step`` and ``second_step``, the user runs both passes:

    loss(x).backward(); optimizer.first_step(zero_grad=True)
    loss(x).backward(); optimizer.second_step(zero_grad=True)

Any other gets a closure that clears the gradients, runs one pass and returns the loss, as `torch.optim` documents
for ``step(closure)``. Where neither form says what to do, the check does not apply, and says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from steppe.core.batch import Batch
from steppe.errors import InputError
from steppe.testing import fixtures
from steppe.testing.fixtures import Make
from steppe.testing.oracles import REFERENCES
from steppe.testing.oracles.harness import ReferenceStep
from steppe.testing.result import NotApplicable
from steppe.testing.subjects import Session, Subject, SubjectOptions

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ThirdParty(Subject):
    """An optimizer class in the form 'two-step' or 'closure', found out if not given.

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
        both = all(callable(getattr(kind, step, None)) for step in ("first_step", "second_step"))
        self.form = form or ("two-step" if both else "closure")
        try:
            self.make(fixtures.smooth(), fixtures.SGD)
        except Exception as error:
            raise InputError(
                f"{self.name} cannot be made from (params, base_optimizer=torch.optim.SGD, lr=0.1): {error}; "
                "give a class that derives from it and can"
            ) from None

    def make(self, model: nn.Module, base: fixtures.BaseOptimizer) -> Any:
        """Make the optimizer, giving it what its signature asks for."""
        takes = inspect.signature(self.kind).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        wanted = {k: v for k, v in base.settings.items() if anything or k in takes}
        if "model" in takes:
            wanted["model"] = model
        if "base_optimizer" not in takes:
            return self.kind(model.parameters(), **wanted, **self.settings)
        try:
            return self.kind(model.parameters(), base_optimizer=base.kind, **wanted, **self.settings)
        except TypeError:
            made = base.make(model.parameters())
            return self.kind(model.parameters(), base_optimizer=made, **self.settings)

    def start(self, make: Make, setup: SubjectOptions) -> Session:
        """Put it to work by the recipe of its form."""
        if setup.m is not None:
            raise NotApplicable("has no m-sharpness within a process")
        if self.form == "closure" and setup.precision == "fp16":
            raise NotApplicable("torch's GradScaler does not take closures")
        if self.form == "closure" and setup.clip is not None:
            raise NotApplicable("step(closure) has no place between the last pass and the update")
        if self.form == "closure" and setup.sync == "local":
            raise NotApplicable("step(closure) does not tell which pass is to stay without communication")
        return _Session(self, make(), setup)

    def at_limit(self) -> Subject:
        """Return it with rho = 0, if it has a rho."""
        if "rho" not in inspect.signature(self.kind).parameters:
            raise NotApplicable("has no radius rho that could be 0")
        return ThirdParty(self.kind, self.name, self.form, self.settings | {"rho": 0.0})

    def reference(self) -> tuple[ReferenceStep, Mapping[str, Any]]:
        """Return the equation of SAM for what calls itself SAM."""
        takes = inspect.signature(self.kind).parameters
        if self.kind.__name__ != "SAM" or "rho" not in takes:
            raise NotApplicable("there is a float64 restatement only for what calls itself SAM")
        return REFERENCES["sam"].step, {"rho": self.settings.get("rho", takes["rho"].default)}


class _Session(Session):
    def __init__(self, subject: ThirdParty, net: nn.Module, setup: SubjectOptions):
        self.subject = subject
        super().__init__(net, setup)

    def _ready(self) -> torch.optim.Optimizer:
        self.theirs = self.subject.make(self.model, self.setup.base)
        fp16 = self.setup.precision == "fp16"
        self.scaler = GradScaler(self.setup.device, init_scale=self.setup.scale) if fp16 else None
        inner: torch.optim.Optimizer = getattr(self.theirs, "base_optimizer", self.theirs)
        return inner

    def _step(self, parts: list[Batch]) -> bool:
        if self.subject.form == "closure":
            self.theirs.step(self._closure(parts))
            self.theirs.zero_grad()
            return False
        quiet = self.setup.sync == "local"
        with self.model.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            self._pass(parts)
        if self.scaler is not None:
            self.scaler.unscale_(self.theirs)
        self.theirs.first_step(zero_grad=True)
        if self.scaler is not None:
            # without an update in between, the scaler refuses to unscale a second time
            self.scaler.update()
        self._pass(parts)
        if self.scaler is not None:
            self.scaler.unscale_(self.theirs)
        if self.setup.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.setup.clip)
        self.theirs.second_step(zero_grad=True)
        if self.scaler is not None:
            self.scaler.update()
        return False

    def _closure(self, parts: list[Batch]) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            self.theirs.zero_grad()
            return self._pass(parts)

        return closure

    def _pass(self, parts: list[Batch]) -> Tensor:
        precision = self.setup.precision
        total = torch.zeros((), device=self.setup.device)
        for part in parts:
            half = precision in _HALF
            with torch.autocast(self.setup.device, _HALF[precision]) if half else nullcontext():
                logits = self.model(part.x)
            loss = self.setup.loss(logits.float() if half else logits, part.y) / len(parts)
            scaled = loss if self.scaler is None else self.scaler.scale(loss)
            scaled.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def scale(self) -> float:
        """Return the scaler's scale, 1 without one."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def method_state(self) -> dict[str, Any]:
        """Return what the optimizer's own ``state_dict`` gives, and the scaler's."""
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        return {"optimizer": self.theirs.state_dict(), "scaler": scaler}

    def load_method_state(self, content: dict[str, Any]) -> None:
        """Give both back."""
        self.theirs.load_state_dict(content["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(content["scaler"])
