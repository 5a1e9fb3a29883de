"""The contract: what a method is, and how one is bound to a model and an optimizer.

A method is a frozen record of its hyper-parameters. It defines at most three things: what is minimised
(``objective``), where its gradient is taken and how one update is made from it (``step``), and how the gradient is
changed before the optimizer gets it (``transform``). Each has a default that is plain training.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from steppe.core import param_groups
from steppe.core.batch import Batch
from steppe.core.data_parallel import SyncMode
from steppe.core.model_call import call_model, extract_logits
from steppe.core.numerics.vector import Vec
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.schedules import FunctionSchedule, Schedule, finite
from steppe.core.step import Step
from steppe.core.step_state import BindOptions, LossFunction, is_count, is_number, is_whole
from steppe.errors import InputError, unknown

# with the types of its signatures, so that a method imports its contract from one place
__all__ = ["Batch", "Method", "Runtime", "StepOutput", "plain_step", "require", "with_weights"]


@dataclass(frozen=True)
class Method:
    """Base of all methods; as it stands, plain training.

    Subclasses are frozen dataclasses whose fields are their hyper-parameters under the paper's symbols.

    Attributes:
        controls: Names of the methods that a comparison adds, because they share the cost but not the idea.
        limit: Settings at which the method is plain training bit for bit, None if it has no such limit.
        cost: The most that one step takes: forward passes, backward passes, updates; None if it varies.
        local: What a method decides in each process on its own, so that several processes, or parts of a batch,
            may differ from one; empty if nothing.
        whole: Why a method cannot train a sharded model (FSDP2); empty if it can.
        single: Why a method cannot train several networks at once; empty if it can.
        mixes: What a step changes in running statistics other than by its clean pass; empty if nothing.
        amounts: The fields that are amounts of training: whole numbers of steps or, below 1, shares of the whole.
        moves: What moves the weights in a step, past the optimizer and its learning rate; empty if nothing.
    """

    controls: ClassVar[tuple[str, ...]] = ()
    limit: ClassVar[Mapping[str, object] | None] = None
    cost: ClassVar[tuple[float, float, int] | None] = None
    local: ClassVar[str] = ""
    whole: ClassVar[str] = ""
    single: ClassVar[str] = ""
    mixes: ClassVar[str] = ""
    moves: ClassVar[str] = ""
    amounts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()
        _unify_numbers(self)

    @property
    def views(self) -> int:
        """How many views of each image the method uses, if the loader makes several."""
        return 1

    @property
    def needs_views(self) -> bool:
        """Whether the method is plain training if its networks see the same view of each image."""
        return False

    def check(self) -> None:
        """Raise InputError for hyper-parameters of the right type and impossible value."""

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the module to be trained, from a function that makes one freshly initialised model."""
        return new_model()

    def init(self, net: nn.Module) -> nn.Module:
        """Return the method's state between steps, as a module of buffers, which checkpoints save."""
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Return the loss that is minimised on a batch, with its graph."""
        return rt.supervised(batch)

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """Make one update and return the output of the clean pass."""
        return plain_step(batch, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Return the gradient that the optimizer gets; must not change ``grads`` in place."""
        return grads

    def before(self, batch: Batch, state: nn.Module, rt: Runtime) -> None:
        """Make passes of the state's own: called once at the beginning of each step, whatever the objective."""

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Update the state: called once after each step that was not skipped."""

    def memory_bytes(self, samples: int, classes: int) -> int:
        """Return the memory in bytes of all that is kept per training sample between steps."""
        return 0

    def allocate(self, state: nn.Module, samples: int, classes: int) -> None:
        """Allocate the memory of `memory_bytes` before training starts; optional."""

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Return the logits of the deployed model."""
        with self.deployed_weights(net, state):
            return extract_logits(call_model(net, x))

    def deployed_weights(self, net: nn.Module, state: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which the network has the deployed weights instead of its own."""
        return nullcontext()

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Return the logits of all that can be evaluated, by name; 'deployed' are those of `predict`.

        Members of an ensemble are named 'network 1', 'network 2', ...; branches of one network 'branch 1', ...
        """
        return {"deployed": self.predict(net, state, x)}

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the deployed model as one plain network: made by ``new_model``, with the deployed weights."""
        with self.deployed_weights(net, state):
            return with_weights(new_model(), net.state_dict())

    def bind(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: LossFunction | str = F.cross_entropy,
        clip: float | None = None,
        clip_each: bool = False,
        precision: str = "fp32",
        scaler: GradScaler | None = None,
        transforms: Sequence[Method] = (),
        microbatch: int | None = None,
        m: int | str | None = None,
        sync: SyncMode = None,
        weigh: Callable[[Batch], float] = len,
        steps: int | Callable[[], float] | None = None,
        epoch: int | None = None,
        seed: int = 0,
    ) -> Step:
        """Bind the method to a model and its optimizer; the result is called once per batch.

        Args:
            model: The network; called as ``model(x)``, or ``model(**x)`` where a batch is a mapping, it returns
                logits (B, classes) or something with ``.logits``. It may be compiled, wrapped in DDP or
                sharded by ``fully_shard``.
            optimizer: Your own optimizer over the model's parameters; it is neither wrapped nor copied, so
                its schedulers and checkpoints work as before. A parameter group may have its own ``rho``, unless
                the optimizer itself has a setting of that name, as Adadelta.
            loss: ``loss(logits, y)``, the mean over the batch; or 'model' if the model, given the targets,
                returns its own loss. The buffers of a module count each batch once, as the model's do.
            clip: Largest global L2 norm of the gradient given to the optimizer.
            clip_each: Clip the gradient of each network or branch by its own norm, as if it had an optimizer of
                its own; parameters that several share are clipped together.
            precision: 'fp32' (the model's own types), 'bf16' or 'fp16' (autocast), or 'fp64' (checked).
            scaler: The loss scale of 'fp16', if not a `torch.amp.GradScaler` of its own. The step calls it.
            transforms: Methods whose ``transform`` is applied after this one's, in order.
            microbatch: Samples per forward pass; larger batches go through in exact micro-batches.
            m: Samples that share a perturbation (m-sharpness): a number, 'micro' for those of each micro-batch,
                or by default all of this process. Only for methods with one update per step.
            sync: Processes that share a perturbation: 'local' (one each; the default, and the papers' way),
                'global' (all), or how many. A sharded model has only 'global', its default.
            weigh: What a micro-batch counts in the mean: its samples, or for a loss that averages over
                tokens, say, a function that counts them.
            steps: The number of steps of the training, or a function that returns the share of it that is done;
                for schedules in shares of the training.
            epoch: The number of steps of an epoch, for methods that do something every so many epochs.
            seed: Seed of the method's own noise.

        Raises:
            InputError: An argument is not usable.
        """
        if not isinstance(model, nn.Module):
            raise InputError(f"model is of type {type(model).__name__}; give a torch.nn.Module")
        if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "step")):
            raise InputError(
                f"optimizer is of type {type(optimizer).__name__}; give a torch.optim.Optimizer of the model's "
                "parameters"
            )
        for name in scheduled(self):
            param_groups.check_setting(optimizer, name)
        if m is not None:
            if m != "micro" and not is_count(m):
                raise InputError(f"m is {m!r}; give a number of samples, 'micro', or None")
            if sync not in (None, "local"):
                raise InputError(f"m is {m!r} and sync is {sync!r}, which cannot be combined; set only one")
        options = BindOptions(
            loss,
            transforms=[m.transform for m in (self, *_transforms(transforms)) if overrides(m, "transform")],
            clip=clip,
            clip_each=clip_each,
            precision=precision,
            scaler=scaler,
            microbatch=microbatch,
            sync=sync,
            weigh=weigh,
            steps=steps,
            epoch=epoch,
            seed=seed,
        )
        return Step(self, model, optimizer, options, m)


def _transforms(methods: Any) -> Sequence[Method]:
    """Return the methods; raises InputError for one that does something else than to transform the gradient."""
    if not isinstance(methods, list | tuple):
        raise InputError(f"transforms is {methods!r}; give a list of methods")
    for method in methods:
        if not (isinstance(method, Method) and overrides(method, "transform")):
            raise InputError(f"transforms has {method!r}, which transforms no gradient; bind it itself")
        for part in ("build", "step", "objective", "before", "after", "predict", "deployed_weights"):
            if overrides(method, part):
                raise InputError(f"transforms has {method!r}, whose {part} would be left out; use On")
    return methods


def with_weights(plain: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Load weights and buffers into a network and return it; raises InputError if they do not fit."""
    try:
        plain.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the deployed weights are not those of a {type(plain).__name__} ({reason})") from None
    return plain


def plain_step(batch: Batch, rt: Runtime) -> StepOutput:
    """Make one plain update: w <- U(w, grad L(w))."""
    out, g = rt.grad(batch)
    rt.apply(g)
    return out


_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Schedule: "a schedule",
}


def check_fields(method: Method) -> None:
    """Raise InputError, naming the field, unless every field has its declared type and numbers are finite.

    An int serves as float. Infinity is a field's value only if it is so in the method's ``limit``.
    """
    hints = _hints(type(method))
    for f in fields(method):
        value, allowed = getattr(method, f.name), hints[f.name]
        fits = any(
            (a is float and is_number(value))
            or (a is int and is_whole(value))
            or (inspect.isclass(a) and a not in (float, int) and isinstance(value, a))
            for a in allowed
        )
        if not fits and Schedule in allowed and callable(value):
            object.__setattr__(method, f.name, FunctionSchedule(value))
            continue
        if not fits:
            expected = " or ".join(_TYPES.get(a, getattr(a, "__name__", str(a))) for a in allowed)
            usual = "" if f.default is MISSING else f" (its default is {f.default!r})"
            raise InputError(f"{name_of(method)}: {f.name} is {value!r}; give {expected}{usual}")
        if is_number(value) and not finite(value) and value != (method.limit or {}).get(f.name):
            raise InputError(f"{name_of(method)}: {f.name} is {value!r}; give a finite number")


def _unify_numbers(method: Method) -> None:
    """Make numbers Python's own, of their declared type: equal methods have equal texts; a default keeps its."""
    hints = _hints(type(method))
    for f in fields(method):
        value = getattr(method, f.name)
        if is_number(value):
            kind = float if float in hints[f.name] else int
            object.__setattr__(method, f.name, f.default if value == f.default else kind(value))


def _hints(method: type[Method]) -> dict[str, tuple[Any, ...]]:
    """Return the types that each field may have."""
    hints = typing.get_type_hints(method)
    return {k: typing.get_args(v) if isinstance(v, types.UnionType) else (v,) for k, v in hints.items()}


def scheduled(method: Method) -> set[str]:
    """Return the fields of a method, and of those it is composed of, that may follow a schedule."""
    inner = [value for f in fields(method) if isinstance(value := getattr(method, f.name), Method)]
    own = {f.name for f in fields(method) if Schedule in _hints(type(method))[f.name]}
    return own.union(*map(scheduled, inner))


def require(method: Method, field: str, holds: bool, remedy: str) -> None:
    """Raise InputError naming the field, its value and the remedy unless ``holds``."""
    if not holds:
        raise InputError(f"{name_of(method)}: {field} is {getattr(method, field)!r}; give {remedy}")


def make_checked(cls: Callable[..., Method], name: str, settings: Mapping[str, Any]) -> Method:
    """Make a method by keyword; raises InputError with the nearest fields for an unknown one."""
    names = list(inspect.signature(cls).parameters)
    for key in settings:
        if key not in names:
            raise unknown(f"setting of {name}", key, names)
    return cls(**settings)


def name_of(method: Method) -> str:
    """Return the name that messages give a method; one that is active for a time only has that of its method."""
    inner = getattr(method, "method", None)
    return name_of(inner) if isinstance(inner, Method) else type(method).__name__


def overrides(method: Method, part: str) -> bool:
    """Return whether a method, or one that it is composed of, overrides ``part``."""
    inner = [value for f in fields(method) if isinstance(value := getattr(method, f.name), Method)]
    if inner:
        return any(overrides(i, part) for i in inner)
    return getattr(type(method), part) is not getattr(Method, part)
