"""The contract: what a method is, how two combine, and how one is bound to a model and an optimizer.

A method is a frozen record of its hyper-parameters. It says at most three things: what is minimised
(``objective``), where its gradient is taken and how one update is made from it (``step``), and what is done
to the gradient on its way to the optimizer (``transform``). Each has a default that is plain training.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.batch import Batch
from steppe.errors import InputError, unknown
from steppe.runtime import Loss, NonFinite, Out, Passes, Runtime
from steppe.vec import Vec

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Method:
    """Base of all methods; as it stands, plain training.

    Subclasses are frozen dataclasses whose fields are their hyper-parameters under the paper's symbols.
    ``controls`` names the methods that a comparison sets beside this one, because they share its cost but
    not its idea.
    """

    controls: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Raise InputError for hyper-parameters of the right type and impossible value."""

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return what is trained, from a function that makes one freshly initialised model."""
        return new_model()

    def init(self, net: nn.Module) -> nn.Module:
        """Return what the method remembers between steps, as a module of buffers: resume comes for free."""
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Return what is minimised on a batch, with its graph."""
        logits = rt.net(batch.x)
        return Out(rt.loss(logits, batch.y), logits)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """Make one update and return the output of the clean pass."""
        return descend(batch, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Return the gradient that the optimizer sees; must leave ``grads`` itself as it is."""
        return grads

    def after(self, batch: Batch, out: Out, state: nn.Module, rt: Runtime) -> None:
        """Remember: called once after each step that was not skipped."""

    def predict(self, net: nn.Module, state: nn.Module, x: Tensor) -> Tensor:
        """Return the logits of what is deployed and evaluated."""
        logits: Tensor = net(x)
        return logits

    def bind(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Loss = F.cross_entropy,
        clip: float | None = None,
        precision: str = "fp32",
        transforms: Sequence[Method] = (),
        microbatch: int | None = None,
        seed: int = 0,
    ) -> Step:
        """Tie the method to a model and its optimizer; the result is called once per batch.

        Args:
            model: The network; called as ``model(x)``, it returns logits (B, classes).
            optimizer: Your own optimizer over the model's parameters; it is neither wrapped nor copied, so
                schedulers and checkpoints of it go on as before.
            loss: ``loss(logits, y)``, the mean over the batch.
            clip: Largest global L2 norm of the gradient given to the optimizer.
            precision: 'fp32' (the model's own types) or 'bf16' (autocast).
            transforms: Methods whose ``transform`` is applied after this one's, in order.
            microbatch: Samples per forward pass; larger batches go through in parts, exactly.
            seed: Seed of the method's own noise.

        Raises:
            InputError: An argument is not usable.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
        if clip is not None and not clip > 0:
            raise InputError(f"clip is {clip}; give a number above 0, or None")
        if microbatch is not None and microbatch < 1:
            raise InputError(f"microbatch is {microbatch}; give at least 1, or None")
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if precision == "bf16":
            device = next(model.parameters()).device.type

            def autocast() -> AbstractContextManager[Any]:
                return torch.autocast(device, dtype=torch.bfloat16)

        runtime = Runtime(
            model,
            optimizer,
            loss,
            transforms=[m.transform for m in (self, *transforms)],
            clip=clip,
            autocast=autocast,
            microbatch=microbatch,
            seed=seed,
        )
        return Step(self, runtime)


def descend(batch: Batch, rt: Runtime) -> Out:
    """Make one plain update: w <- U(w, grad L(w))."""
    out, g = rt.grad(rt.objective, batch)
    rt.apply(g)
    return out


class Step:
    """A method at work: called once per batch, it makes one step and returns the clean pass's output."""

    def __init__(self, method: Method, runtime: Runtime):
        self.method = method
        self.runtime = runtime
        self.state = method.init(runtime.net)
        self.state.to(runtime.params[0].device)
        runtime.objective = lambda batch: method.objective(batch, self.state, runtime)

    @property
    def passes(self) -> Passes:
        """Forward and backward passes and optimizer updates so far, counted."""
        return self.runtime.passes

    def __call__(self, x: Any, y: Tensor | None = None) -> Out:
        """Make one step on ``(x, y)``, a `Batch`, a pair, or a list of these (micro-batches of one batch).

        A list is one batch that goes through in parts: every pass of the method sees every part, so the
        result is that of the whole batch. If the loss or a gradient is not finite in any pass, the weights
        are as before that pass's update and ``out.skipped`` is True.
        """
        batch, microbatch = _as_batch(x, y)
        rt, before = self.runtime, self.runtime.microbatch
        if microbatch is not None:
            rt.microbatch = microbatch
        rt.begin(batch)
        try:
            out = self.method.step(batch, self.state, rt)
        except NonFinite as signal:
            out = signal.out
            out.skipped = True
            return out
        finally:
            rt.microbatch = before
        self.method.after(batch, out, self.state, rt)
        return out

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits of what the method deploys."""
        return self.method.predict(self.runtime.net, self.state, x)

    def state_dict(self) -> dict[str, Any]:
        """Return what resume needs beside the model's and the optimizer's own state."""
        return {
            "method": repr(self.method),
            "state": self.state.state_dict(),
            "generators": {k: g.get_state() for k, g in self.runtime.generators().items()},
            "passes": dict(vars(self.runtime.passes)),
        }

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s content; raises InputError if it belongs to another method."""
        if content["method"] != repr(self.method):
            raise InputError(f"this state belongs to {content['method']}, not to {self.method!r}")
        self.state.load_state_dict(content["state"])
        for name, generator in self.runtime.generators().items():
            generator.set_state(content["generators"][name].cpu())
        for name, value in content["passes"].items():
            setattr(self.runtime.passes, name, value)


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
            if _overrides(self.rule, part) and _overrides(self.base, part):
                raise InputError(
                    f"{_name(self.rule)} and {_name(self.base)} both define the {part}; "
                    "combine methods that change different parts, such as sam+gc"
                )

    def _holder(self, part: str) -> Method:
        return self.rule if _overrides(self.rule, part) else self.base

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

    def predict(self, net: nn.Module, state: nn.Module, x: Tensor) -> Tensor:
        """Deploy what the one that defines a prediction deploys, the base by default."""
        holder = self._holder("predict")
        return holder.predict(net, self._state(holder, state), x)

    def _state(self, part: Method, state: nn.Module) -> nn.Module:
        return state.get_submodule("rule" if part is self.rule else "base")


def check_fields(method: Method) -> None:
    """Raise InputError, naming the field, unless every field has its declared type (an int serves as float)."""
    hints = typing.get_type_hints(type(method))
    for f in fields(method):
        value, hint = getattr(method, f.name), hints[f.name]
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        fits = any(
            (a is float and isinstance(value, int | float) and not isinstance(value, bool))
            or (a is int and isinstance(value, int) and not isinstance(value, bool))
            or (inspect.isclass(a) and a not in (float, int) and isinstance(value, a))
            for a in allowed
        )
        if not fits:
            wanted = " or ".join(getattr(a, "__name__", str(a)) for a in allowed)
            raise InputError(f"{_name(method)}: {f.name} is {value!r}; give {wanted}")


def require(method: Method, field: str, holds: bool, remedy: str) -> None:
    """Raise InputError naming the field, its value and the remedy unless ``holds``."""
    if not holds:
        raise InputError(f"{_name(method)}: {field} is {getattr(method, field)!r}; give {remedy}")


def make_checked(cls: Callable[..., Method], name: str, settings: Mapping[str, Any]) -> Method:
    """Make a method by keyword, with an error that knows its fields' names."""
    known = list(inspect.signature(cls).parameters)
    for key in settings:
        if key not in known:
            raise unknown(f"setting of {name}", key, known)
    return cls(**settings)


def _name(method: Method) -> str:
    return type(method).__name__


def _overrides(method: Method, part: str) -> bool:
    if isinstance(method, On):
        return _overrides(method.rule, part) or _overrides(method.base, part)
    return getattr(type(method), part) is not getattr(Method, part)


def _as_batch(x: Any, y: Tensor | None) -> tuple[Batch, int | None]:
    """Return one batch and, for a list of micro-batches, the size of the largest."""
    if y is not None:
        return Batch(x, y), None
    if isinstance(x, Batch):
        return x, None
    if isinstance(x, list):
        if not x:
            raise InputError("the list of micro-batches is empty; give at least one")
        parts = [_as_batch(part, None)[0] for part in x]
        return _joined(parts), max(len(p) for p in parts)
    if isinstance(x, tuple) and len(x) == 2:
        return Batch(x[0], x[1]), None
    raise InputError(f"a step takes x and y, a Batch, a pair, or a list of these; this is {type(x).__name__}")


def _joined(parts: list[Batch]) -> Batch:
    index = None
    if all(p.index is not None for p in parts):
        index = torch.cat([p.index for p in parts if p.index is not None])
    extra = {k: torch.cat([p.extra[k] for p in parts]) for k in parts[0].extra}
    return Batch(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), index, extra)
