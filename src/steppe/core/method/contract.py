"""The contract: what a method is, and how one is bound to a model and an optimizer.

A method is a frozen record of its hyper-parameters. It defines at most three things: what is minimised
(``objective``), where its gradient is taken and how one update is made from it (``step``), and how the gradient is
changed before the optimizer gets it (``transform``). Each has a default that is plain training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from typing_extensions import TypeVar

from steppe.core import param_groups
from steppe.core.batch import Batch
from steppe.core.data_parallel import SyncMode
from steppe.core.method.hyperparameters import (
    as_data,
    as_text,
    check_fields,
    constraint_of,
    plain_fields,
    types_of,
)
from steppe.core.model_call import call_for_logits, with_weights
from steppe.core.numerics.vector import Vec
from steppe.core.optimizers.joint import joined
from steppe.core.runtime import Runtime, StepOutput
from steppe.core.schedules import Schedule
from steppe.core.step import Step
from steppe.core.step_state import BindOptions, LossFunction
from steppe.errors import InputError, unknown

State = TypeVar("State", bound=nn.Module, default=Any)


class Cost(NamedTuple):
    """The most that one step takes: forward and backward passes, and updates."""

    forward: float
    backward: float
    updates: int


@dataclass(frozen=True)
class Method(Generic[State]):
    """Base of all methods; as it stands, plain training.

    Subclasses are frozen dataclasses whose fields are their hyper-parameters under the paper's symbols, declared
    with `hyper`. ``Method[State]`` keeps a state of this class. What follows from the fields (``cost``
    and the others below) is a constant or a property of the class, and never stored: `dataclasses.replace` edits
    any method. Methods are equal, and have the same repr, if the same was given; `to_dict` has what that means.
    """

    controls: ClassVar[tuple[str, ...]] = ()
    """Names of methods that share the cost but not the idea; a comparison with them shows the differences."""

    state_type: ClassVar[type[nn.Module]] = nn.Module
    """What ``init`` makes: the class in ``Method[...]``, called with the network."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for kind in get_args(base):
                if inspect.isclass(kind) and issubclass(kind, nn.Module):
                    cls.state_type = kind

    def __post_init__(self) -> None:
        check_fields(self, name_of(self))
        self.check()

    @property
    def cost(self) -> tuple[float, float, int] | None:
        """The most that one step takes: forward passes, backward passes, updates (`Cost`); None if it varies."""
        return None

    @property
    def limit(self) -> Mapping[str, object] | None:
        """Settings at which it is plain training bit for bit, from its fields; None if it has no such limit."""
        return next(iter(self.limits), None)

    @property
    def limits(self) -> list[dict[str, object]]:
        """All the settings at which its fields make it plain training; ``limit`` is the first."""
        either, always = plain_fields(type(self))
        return [{name: value, **always} for name, value in either.items()]

    @property
    def local(self) -> str:
        """What it decides in each process on its own, so that several processes, or parts of a batch, may differ
        from one; empty if nothing."""
        return ""

    @property
    def whole(self) -> str:
        """Why it cannot train a sharded model (FSDP2); empty if it can."""
        return ""

    @property
    def single(self) -> str:
        """Why it cannot train several networks at once; empty if it can."""
        return ""

    @property
    def on_host(self) -> str:
        """Why a step needs the host and cannot be a graph (``graph=True``); empty if it can."""
        return ""

    @property
    def mixes(self) -> str:
        """What a step changes in running statistics other than by its clean pass; empty if nothing."""
        return ""

    @property
    def moves(self) -> str:
        """What moves the weights in a step, past the optimizer and its learning rate; empty if nothing."""
        return ""

    @property
    def amounts(self) -> tuple[str, ...]:
        """The fields that are amounts of training: whole numbers of steps or, below 1, shares of the whole."""
        return tuple(f.name for f in fields(self) if constraint_of(f).amount)

    def preset_values(self) -> Mapping[str, object]:
        """Return the values of fields that are None, from the method's preset."""
        return {}

    @cached_property
    def resolved(self) -> Any:
        """All fields by name; those that are None have the preset's value."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        preset = {k: v for k, v in self.preset_values().items() if own[k] is None}
        return SimpleNamespace(**{**own, **preset})

    def to_dict(self) -> dict[str, Any]:
        """Return the class's name ("class") and all fields, as data for JSON: equal data, equal steps.

        Presets are resolved, schedules are text, methods in fields are dictionaries.
        """
        out = {f.name for f in fields(self) if constraint_of(f).preset}
        out |= {f.name for f in fields(self) if constraint_of(f).added and getattr(self, f.name) == f.default}
        settings = {k: as_data(v) for k, v in vars(self.resolved).items() if k not in out}
        return {"class": type(self).__name__, **settings}

    def __str__(self) -> str:
        return as_text(self.to_dict())

    def scheduled_limits(self) -> tuple[str, ...]:
        """Return the hyper-parameters with ``plain_at`` that a parameter group may set."""
        return tuple(name for name in plain_fields(type(self))[0] if Schedule in types_of(type(self))[name])

    def may_be_at_limit(self) -> bool:
        """Return whether a schedule, or the values as they are, may make a step plain training."""
        values = {name: (getattr(self, name), plain) for name, plain in plain_fields(type(self))[0].items()}
        return any(isinstance(value, Schedule) or value == plain for value, plain in values.values())

    def at_limit(self, rt: Runtime) -> bool:
        """Return whether its hyper-parameters make this step plain training; see ``plain_at`` of `hyper`."""
        either, always = plain_fields(type(self))
        if not either or any(getattr(self, name) != value for name, value in always.items()):
            return False
        return any(self._is_at(name, value, rt) for name, value in either.items())

    def _is_at(self, name: str, plain: Any, rt: Runtime) -> bool:
        value = getattr(self, name)
        if Schedule not in types_of(type(self))[name]:
            return bool(value == plain)
        set_by_group = any(name in group for group in rt.optimizer.param_groups)
        return bool(
            (set_by_group or isinstance(value, Schedule) or value == plain) and rt.setting(name, value) == plain
        )

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

    def init(self, net: nn.Module) -> State:
        """Return the method's state between steps, as a module of buffers, which checkpoints save."""
        return cast(State, nn.Module() if self.state_type is nn.Module else self.state_type(net))

    def objective(self, batch: Batch, state: State, rt: Runtime) -> StepOutput:
        """Return the loss that is minimised on a batch, with its graph."""
        return rt.supervised(batch)

    def step(self, batch: Batch, state: State, rt: Runtime) -> StepOutput:
        """Make one update and return the output of the clean pass."""
        return plain_step(batch, rt)

    def step_or_plain(self, batch: Batch, state: State, rt: Runtime) -> StepOutput:
        """Make the method's step, or a plain one at its limit."""
        return plain_step(batch, rt) if rt.decide(lambda: self.at_limit(rt)) else self.step(batch, state, rt)

    def objective_or_plain(self, batch: Batch, state: State, rt: Runtime) -> StepOutput:
        """Return the method's objective on a batch, or the user's loss at its limit."""
        plain = type(self).objective is Method.objective or rt.decide(lambda: self.at_limit(rt))
        return rt.supervised(batch) if plain else self.objective(batch, state, rt)

    def transform(self, grads: Vec, rt: Runtime) -> Vec:
        """Return the gradient that the optimizer gets; must not change ``grads`` in place."""
        return grads

    def before(self, batch: Batch, state: State, rt: Runtime) -> None:
        """Make passes of the state's own: called once at the beginning of each step, whatever the objective."""

    def after(self, batch: Batch, out: StepOutput, state: State, rt: Runtime) -> None:
        """Update the state, after a step that the host does not know to be skipped (`StepOutput.skip_flag`)."""

    def memory_bytes(self, samples: int, classes: int) -> int:
        """Return the memory in bytes of all that is kept per training sample between steps."""
        return 0

    def allocate(self, state: State, samples: int, classes: int) -> None:
        """Allocate the memory of `memory_bytes` before training starts; optional."""

    def observe_targets(self, state: State, y: Any) -> None:
        """Learn the targets of all training samples, (N,) classes say, before training starts; optional."""

    def predict(self, net: nn.Module, state: State, x: Any) -> Tensor:
        """Return the logits of the deployed model."""
        with self.deployed_weights(net, state):
            return call_for_logits(net, x)

    def deployed_weights(self, net: nn.Module, state: State) -> AbstractContextManager[None]:
        """Return the context in which the network has the deployed weights instead of its own."""
        return nullcontext()

    def outputs(self, net: nn.Module, state: State, x: Any) -> dict[str, Tensor]:
        """Return the logits of all that can be evaluated, by name; 'deployed' are those of `predict`.

        Members of an ensemble are named 'network 1', 'network 2', ...; branches of one network 'branch 1', ...
        """
        return {"deployed": self.predict(net, state, x)}

    def choose(self, state: State, ranks: Mapping[str, Any]) -> str | None:
        """Deploy the output of the highest rank, given those on the validation data by name, and return its name.

        Called after each validation. By default nothing is chosen, and None returned.
        """
        return None

    def deployed_model(self, net: nn.Module, state: State, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the deployed model as one plain network: made by ``new_model``, with the deployed weights."""
        with self.deployed_weights(net, state):
            return with_weights(new_model(), net.state_dict())

    def bind(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        loss: LossFunction | str = F.cross_entropy,
        clip: float | None = None,
        clip_each: bool = False,
        outputs: str | None = None,
        precision: str = "fp32",
        scaler: GradScaler | None = None,
        transforms: Sequence[Method] = (),
        microbatch: int | None = None,
        m: int | str | None = None,
        sync: SyncMode = None,
        weigh: Callable[[Batch], float] = len,
        steps: int | Callable[[], float] | None = None,
        epoch: int | None = None,
        graph: bool = False,
        decay_start: float | None = None,
        seed: int = 0,
    ) -> Step:
        """Bind the method to a model and its optimizer; the result is called once per batch.

        Args:
            model: The network; called as ``model(x)``, or ``model(**x)`` where a batch is a mapping, it returns
                logits (B, classes) or something with ``.logits``. It may be compiled, wrapped in DDP or
                sharded by ``fully_shard``.
            optimizer: Your own optimizer over the model's parameters, or a list of several that hold some each;
                they are not copied, so their schedulers and checkpoints work as before. A parameter group may
                have its own ``rho``, unless its optimizer has a setting of that name, as Adadelta.
            loss: ``loss(logits, y)``, the mean over the batch; 'model' if the model, given the targets, returns
                its own loss; or `steppe.ModelLoss` of a function that calls the model itself. The buffers of a
                module count each batch once, as the model's do.
            outputs: What the network's outputs are, for methods that compare them: 'classes', 'labels' (each yes
                or no) or 'numbers' (regression). By default the loss and the first targets say it.
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
            graph: Make the step a CUDA graph: after some steps of each kind (shape of the batch, setting of the
                optimizer, decision of the method) it is recorded, and from then on replayed without Python. The
                optimizer has ``fused=True`` or ``capturable=True``. Learning rates and schedules may change in
                each step; the model must not read values, nor draw numbers on the host. A processor repeats the
                operations one by one, which is no faster.
            decay_start: The share of the training at which the learning rate begins to decay, for methods that
                are active in the decay alone (``tail="decay"``).
            seed: Seed of the method's own noise.

        A step that is resumed from checkpoints of model, optimizer, `Step.state_dict` and the global RNG makes the
        bits of an undisturbed one: on a processor always, on a GPU only with deterministic kernels. These need
        ``torch.use_deterministic_algorithms(True)``, ``torch.backends.cudnn.benchmark = False`` and
        ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the environment. Without them a resumed training drifts away.

        Raises:
            InputError: An argument is not usable.
        """
        if not isinstance(model, nn.Module):
            raise InputError(f"model is of type {type(model).__name__}; give a torch.nn.Module")
        optimizer = joined(optimizer)
        for name in scheduled(self):
            param_groups.check_setting(optimizer, name)
        options = BindOptions(
            loss,
            transforms=[m.transform for m in (self, *_transforms(transforms)) if overrides(m, "transform")],
            clip=clip,
            clip_each=clip_each,
            outputs=outputs,
            precision=precision,
            scaler=scaler,
            microbatch=microbatch,
            m=m,
            sync=sync,
            weigh=weigh,
            steps=steps,
            epoch=epoch,
            graph=graph,
            decay_start=decay_start,
            seed=seed,
        )
        return Step(self, model, optimizer, options)


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


def plain_step(batch: Batch, rt: Runtime) -> StepOutput:
    """Make one plain update: w <- U(w, grad L(w))."""
    out, g = rt.grad(batch, last=True)
    rt.apply(g)
    return out


def scheduled(method: Method) -> set[str]:
    """Return the fields of a method, and of those it is composed of, that may follow a schedule."""
    own = {f.name for f in fields(method) if Schedule in types_of(type(method))[f.name]}
    return own.union(*map(scheduled, parts_of(method)))


def parts_of(method: Method) -> list[Method]:
    """Return the methods that a method is directly composed of."""
    return [value for f in fields(method) if isinstance(value := getattr(method, f.name), Method)]


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
    if inner := parts_of(method):
        return any(overrides(i, part) for i in inner)
    return getattr(type(method), part) is not getattr(Method, part)
