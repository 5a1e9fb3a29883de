"""The optimizer of a run and its learning rate over the run, made from their names and settings."""

import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from steppe.config import Run, user_code
from steppe.config.optim import Optim
from steppe.core.numerics.vector import any_sharded
from steppe.core.optimizers.joint import joined, switch
from steppe.core.optimizers.splits import grouped, hidden_matrices
from steppe.core.schedules import finite
from steppe.errors import InputError, unknown

_NAMED = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": torch.optim.Muon}
_SCHEDULE_FREE = {"schedulefree-sgd": "SGDScheduleFree", "schedulefree-adamw": "AdamWScheduleFree"}
_STEPS = ("total_steps", "T_max", "total_iters", "num_training_steps")  # arguments that are the run's steps


def resolve_optimizer(name: Any) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of an optimizer by its name or as ``module:Class``; a class is returned as it is.

    Raises InputError for an unknown name, a package that is not installed, and what is no class of optimizers.
    """
    if not isinstance(name, str):
        cls = name
    elif name in _NAMED:
        return _NAMED[name]
    elif name in _SCHEDULE_FREE:
        try:
            cls = getattr(importlib.import_module("schedulefree"), _SCHEDULE_FREE[name])
        except ImportError:
            raise InputError(
                f"optim.name is {name!r} and schedulefree is missing; pip install schedulefree"
            ) from None
    else:
        cls = _imported("optim.name", name)
    if not (inspect.isclass(cls) and hasattr(cls, "step") and hasattr(cls, "zero_grad")):
        raise InputError(f"optim.name is {name!r}, which is no optimizer class; give one, as torch.optim:NAdam")
    return typing.cast(Callable[..., torch.optim.Optimizer], cls)


def _imported(field: str, text: str) -> Any:
    """Return what ``module:Name`` names: of PyTorch or schedule-free, else code that the user gave."""
    if not is_installed_code(text):
        return user_code.get("optimizer" if field == "optim.name" else "schedule", text)
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{field} is {text!r}, and {error}; give an importable module:Class") from None


def is_installed_code(name: str) -> bool:
    """Return whether an optimizer's name is ours, PyTorch's or schedule-free's, not a class of the user."""
    return all(
        ":" not in one or one.split(":")[0].split(".")[0] in ("torch", "schedulefree") for one in name.split("+")
    )


def optimizer_of(options: Optim, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over the network's parameters, which may be sharded, in training mode.

    Of two optimizers the first has the hidden matrices (`split_for_muon`), the second all other
    parameters.

    Raises InputError for settings that a class does not take, and for a first optimizer without parameters.
    """
    params, names = list(net.parameters()), options.names
    shares = [params]
    if len(names) > 1:
        hidden = hidden_matrices(net)
        shares = [[p for p in params if (id(p) in hidden) is first] for first in (True, False)]
        for name, share, what in zip(names, shares, ("no hidden matrix", "hidden matrices only"), strict=True):
            if not share:
                raise InputError(f"optim.name is {options.name!r} and the network has {what}; leave {name} out")
    optimizer = joined([_make(options, name, net, own) for name, own in zip(names, shares, strict=True)])
    switch(optimizer, "train")
    return optimizer


def _make(o: Optim, name: str, net: nn.Module, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    cls, own = resolve_optimizer(name), o.settings_of(name)
    signature = inspect.signature(cls).parameters
    names = [k for k in signature if k != "params"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    if not takes_any:
        for key in own:
            if key not in names:
                raise unknown(f"setting of {name}", key, names)
    common = _common(o, name, params)
    if ":" in name:
        changed = {k: v for k, v in common.items() if v != getattr(Optim, k)}
        for key, value in changed.items():
            if key not in names and not takes_any:
                raise InputError(f"optim.{key} is {value:g} and {name} takes none; leave it out")
        common = {k: v for k, v in common.items() if k in names or k in changed}
    own_lr = own.pop("lr", None)
    if not (own_lr is None or finite(own_lr)):
        raise InputError(f"optim.settings has lr={own_lr}; give a number")
    settings = common | own
    groups = _groups(o, net, params, settings.get("weight_decay", 0.0))
    try:
        optimizer = cls(groups, **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"optim.name is {name!r} and its class refuses its settings: {error}") from None
    keep_own_rates(optimizer, o.lr, own_lr)
    return optimizer


def keep_own_rates(optimizer: torch.optim.Optimizer, lr: float, own_lr: float | None = None) -> None:
    """Have a schedule of the rate ``lr`` be one of each group's own rate, or of ``own_lr``, where that differs."""
    for group in optimizer.param_groups:
        rate = group.get("lr") if own_lr is None else own_lr
        if lr and rate is not None and float(rate) != lr:
            group["lr_scale"] = group.get("lr_scale", 1.0) * float(rate) / lr


def _groups(o: Optim, net: nn.Module, params: list[nn.Parameter], weight_decay: float) -> list[Any]:
    return grouped(
        net,
        params,
        decay_matrices_only=o.decay == "matrices",
        layer_decay=o.layer_decay,
        factors=o.rate_factors,
        weight_decay=weight_decay,
    )


def _common(o: Optim, name: str, params: list[nn.Parameter]) -> dict[str, Any]:
    """Return the settings that an optimizer has from the options of all."""
    common: dict[str, Any] = {"lr": o.lr, "weight_decay": o.weight_decay}
    sharded = any_sharded(params)
    if name == "sgd":
        # PyTorch has no fused SGD for DTensor
        return common | {"momentum": o.momentum, "nesterov": o.nesterov, "fused": not sharded}
    if name in ("adam", "adamw"):
        return common | {"eps": o.eps, "fused": True}
    if name == "muon":
        if sharded:
            raise InputError("parallel is 'fsdp' and Muon needs whole matrices; use --parallel ddp")
        # the size of AdamW's updates, so that one rate serves both
        return common | {"adjust_lr_fn": "match_rms_adamw"}
    if name == "schedulefree-sgd":
        if not o.momentum:
            raise InputError("optim.momentum is 0 and schedulefree-sgd needs one; 0.9 is usual")
        return common | {"momentum": o.momentum}
    return common | ({"eps": o.eps} if name == "schedulefree-adamw" else {})


def placeholder_of(options: Optim, net: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer with the same groups that makes no steps: to read a checkpoint of another one."""
    names = options.names
    hidden = hidden_matrices(net) if len(names) > 1 else set()
    params = list(net.parameters())
    shares = [[p for p in params if (id(p) in hidden) is first] for first in (True, False)][2 - len(names) :]
    return joined([torch.optim.SGD(_groups(options, net, own, options.weight_decay)) for own in shares])


def learning_rate(run: Run, steps: int) -> Callable[[float], float]:
    """Return the learning rate as a function of the share of the budget that is spent.

    A scheduler named as ``module:Class`` is run through once, over as many ``steps``; the rate at a share is that
    of the step that begins there. Its arguments ``total_steps``, ``T_max``, ``total_iters`` and
    ``num_training_steps`` are the run's steps where they have no default and are not set.

    Raises InputError for a budget other than epochs, and for what is no scheduler or needs a metric.
    """
    o = run.optim
    if ":" not in o.schedule:
        return o.lr_at
    if run.match != "epochs":
        raise InputError(
            f"optim.schedule is {o.schedule!r}, which counts steps, and match is {run.match!r}; use --match "
            "epochs, or a schedule with a name, as cosine"
        )
    rates = _rates(o, steps)

    def at(share: float) -> float:
        if share < o.warmup:
            return o.warmup_lr + (o.lr - o.warmup_lr) * share / o.warmup
        return rates[min(round(share * steps), steps - 1)]

    return at


def _rates(o: Optim, steps: int) -> list[float]:
    """Return the rate of each step under a scheduler."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], o.lr, momentum=0.9)
    make = _imported("optim.schedule", o.schedule)
    settings = {k: steps if v == "steps" else v for k, v in o.scheduler_settings.items()}
    try:
        scheduler = make(optimizer, **(_length(make, steps) | settings))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"optim.schedule is {o.schedule!r} and refuses its settings: {error}") from None
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            f"optim.schedule is {o.schedule!r}, which is no scheduler of steps alone; give one, as "
            "torch.optim.lr_scheduler:PolynomialLR"
        )
    rates = []
    for step in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        if step < steps - 1:
            optimizer.step()
            scheduler.step()
    return rates


def _length(make: Any, steps: int) -> dict[str, Any]:
    required = [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]
    return {name: steps for name in _STEPS if name in required or (name == "total_steps" and "max_lr" in required)}
