"""The options of the optimizer and of its learning rate."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steppe.config._checks import check_choice, check_choices, check_positive
from steppe.config.fields import added
from steppe.errors import InputError

OPTIMIZERS = ("adam", "adamw", "sgd", "muon", "schedulefree-sgd", "schedulefree-adamw")
SCHEDULES = ("cosine", "constant", "step", "linear", "wsd", "wsd-sqrt", "one-cycle", "cosine-restarts")
_CLASS = re.compile(r"([A-Za-z_][\w.]*|[^:+]+\.py):[A-Za-z_]\w*")
_RISE, _DIVISOR, _FINAL = 0.3, 25.0, 1e4  # PyTorch's OneCycleLR: share that rises, lr / first rate, first / last


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and learning rate schedule.

    Attributes:
        name: adam, adamw, sgd, schedulefree-sgd, schedulefree-adamw, or any class as module:Class. Two joined by a
            plus, as muon+adamw: the first trains the hidden matrices, the second all other parameters.
        lr: Initial learning rate.
        momentum: Momentum of sgd and schedulefree-sgd; the others have theirs in settings.
        nesterov: Use Nesterov momentum.
        eps: Added to the denominator of adam and adamw (PyTorch's default 1e-8, Keras's 1e-7); sgd ignores it.
        weight_decay: Weight decay, applied by the optimizer.
        schedule: 'cosine' decays the rate to min_lr over the run's budget, once per step; 'constant' keeps it;
            'step' divides it by ten at half and again at three quarters of the budget; 'linear' decays in a
            straight line; 'wsd' keeps it and decays it in the last decay_share (warmup-stable-decay), 'wsd-sqrt'
            by 1 - sqrt; 'one-cycle' rises along a cosine and falls along another; 'cosine-restarts' repeats the
            cosine in cycles. Or a scheduler of PyTorch as module:Class.
        min_lr: Rate at which the schedule ends.
        warmup: Share of the budget in which the rate rises linearly from warmup_lr to lr. It replaces the first
            part of cosine, constant and step; the others begin after it. Of one-cycle it is the part that rises,
            0.3 if not given.
        warmup_lr: Rate at which the warm-up starts.
        label_smoothing: Share of each target that is spread evenly over all classes in the training loss.
        clip: Largest L2 norm of all gradients together; no clipping if not given.
        clip_each: Clip each network or branch of a method that trains several by its own norm.
        settings: Other settings of the optimizer, each KEY=VALUE, as betas=[0.9,0.95]; of one of two
            NAME.KEY=VALUE, as adamw.lr=0.001.
        decay: Which parameters have weight decay: 'all', or 'matrices' (not norms and biases).
        layer_decay: Factor of the rate from each layer to the one below it; 1 for one rate.
        lr_factors: Factors of the rate of some parameters, each WHICH=FACTOR, as norm=64 or head=10; WHICH is
            norm, kernels, bias, last:N or a name, as where of SAM. Their weight decay is divided by the factor, so
            that a step's decay stays what it is.
        decay_share: Last share of the budget in which wsd decays.
        cycles: Number of cycles of cosine-restarts.
        schedule_settings: Settings of a scheduler named as module:Class, each KEY=VALUE; the value steps is the
            number of the run's steps.
    """

    name: str = "adam"
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    clip: float | None = None
    nesterov: bool = False
    warmup: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    clip_each: bool = False
    eps: float = 1e-8
    settings: tuple[str, ...] = added(())
    decay: Literal["all", "matrices"] = added("all")
    layer_decay: float = added(1.0)
    lr_factors: tuple[str, ...] = added(())
    decay_share: float = added(0.2)
    cycles: int = added(4)
    schedule_settings: tuple[str, ...] = added(())

    def __post_init__(self) -> None:
        name: Any = self.name
        if isinstance(name, type):
            object.__setattr__(self, "name", f"{name.__module__}:{name.__qualname__}")
        check_choices(self, "optim.")
        for name in ("settings", "schedule_settings", "lr_factors"):
            object.__setattr__(self, name, _as_texts(name, getattr(self, name)))
        for where, factor in self.rate_factors.items():
            if isinstance(factor, bool) or not isinstance(factor, int | float):
                raise InputError(f"optim.lr_factors has {where}={factor}; give a number above 0")
            check_positive(f"optim.lr_factors of {where}", factor)
        self._check_name()
        if not _CLASS.fullmatch(self.schedule):
            check_choice("optim.schedule", self.schedule, SCHEDULES, "a scheduler as module:Class")
            if self.schedule_settings:
                raise InputError(
                    f"optim.schedule_settings is {' '.join(self.schedule_settings)} and optim.schedule "
                    f"{self.schedule!r}, which takes none; leave them out, or name a scheduler as module:Class"
                )
        for name in ("lr", "weight_decay", "momentum", "eps", "warmup_lr", "min_lr"):
            check_positive(f"optim.{name}", getattr(self, name), strict=False)
        check_positive("optim.clip", self.clip)
        check_positive("optim.cycles", self.cycles)
        if self.clip_each and self.clip is None:
            raise InputError("optim.clip_each is True and optim.clip is not given; give the largest norm")
        if self.momentum >= 1:
            raise InputError(f"optim.momentum is {self.momentum}; give a number below 1")
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov is True and optim.momentum 0; give a momentum, 0.9 is usual")
        for name in ("warmup", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"optim.{name} is {value}; give a share from 0 to below 1")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"optim.layer_decay is {self.layer_decay}; give a factor above 0 and at most 1")
        if not 0 < self.decay_share <= 1:
            raise InputError(f"optim.decay_share is {self.decay_share}; give a share above 0 and at most 1")
        if self.decay_start is not None and self.warmup > self.decay_start:
            raise InputError(
                f"optim.warmup is {self.warmup} and optim.decay_share {self.decay_share}, together more than the "
                "whole budget; give smaller shares"
            )
        for name in ("warmup_lr", "min_lr"):
            if getattr(self, name) > self.lr:
                raise InputError(
                    f"optim.{name} is {getattr(self, name)} and optim.lr {self.lr}; give at most that"
                )

    def _check_name(self) -> None:
        names = self.names
        for name in names:
            if not _CLASS.fullmatch(name):
                check_choice("optim.name", name, OPTIMIZERS, "a class as module:Class", "two as muon+adamw")
        if len(names) > 2 or len(set(names)) != len(names):
            raise InputError(f"optim.name is {self.name!r}; join two different optimizers, as muon+adamw")
        if names[-1] == "muon":
            raise InputError(f"optim.name is {self.name!r}, and muon trains matrices only; write muon+adamw")
        free = [name for name in names if name.startswith("schedulefree-")]
        if free and self.schedule in ("cosine", "cosine-restarts", "one-cycle"):
            raise InputError(
                f"optim.name is {free[0]!r}, whose average takes the place of a decay, and optim.schedule "
                f"{self.schedule!r}; add --optim.schedule constant"
            )
        for key, _ in _pairs(self.settings):
            owners = [name for name in names if key.startswith(f"{name}.")]
            if len(names) > 1 and not owners:
                raise InputError(
                    f"optim.settings has {key!r} and optim.name is {self.name!r}; write {names[0]}.{key} or "
                    f"{names[1]}.{key}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the optimizers that are joined, of one only its own."""
        return tuple(self.name.split("+"))

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the settings of one of the optimizers."""
        return {
            key.removeprefix(f"{name}."): v for key, v in _pairs(self.settings) if self._owner(key) in (name, "")
        }

    def _owner(self, key: str) -> str:
        return next((name for name in self.names if key.startswith(f"{name}.")), "")

    @property
    def scheduler_settings(self) -> dict[str, Any]:
        """The settings of a scheduler that is named as module:Class."""
        return dict(_pairs(self.schedule_settings))

    @property
    def rate_factors(self) -> dict[str, float]:
        """The factor of the rate of each selection of parameters."""
        return dict(_pairs(self.lr_factors))

    @property
    def decay_start(self) -> float | None:
        """The share of the budget at which the decay phase of the schedule starts, None if it has none."""
        return 1 - self.decay_share if self.schedule in ("wsd", "wsd-sqrt") else None

    def lr_at(self, share: float) -> float:
        """Return the learning rate once this share s of the budget is spent, of the schedules with a name.

        Up to s = warmup it is warmup_lr + (lr - warmup_lr) s / warmup. Then it is lr, or with the cosine schedule
        min_lr + (lr - min_lr) (1 + cos(pi s)) / 2. With u = (s - warmup) / (1 - warmup) and d = decay_share:
        linear min_lr + (lr - min_lr) (1 - u); wsd the same with min(1, (1 - s) / d) for 1 - u, and wsd-sqrt with
        1 - sqrt(1 - (1 - s) / d); cosine-restarts the cosine at the fraction of u cycles; one-cycle a cosine from
        lr / 25 to lr over warmup or 0.3, then one down to a 10,000th of that, unless warmup_lr and min_lr are set.
        """
        if self.schedule == "one-cycle":
            return self._one_cycle(min(share, 1.0))
        if share < self.warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * share / self.warmup
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr * (1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
        if self.schedule == "cosine":
            return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
        if _CLASS.fullmatch(self.schedule):
            raise InputError(f"optim.schedule is {self.schedule!r}, whose rates depend on the number of steps")
        return self.min_lr + (self.lr - self.min_lr) * self._part(min(share, 1.0))

    def _part(self, share: float) -> float:
        """Return the part of lr - min_lr that is left of a schedule after the warm-up."""
        done = (share - self.warmup) / (1 - self.warmup)
        if self.schedule == "linear":
            return 1 - done
        if self.schedule == "cosine-restarts":
            # the last step of a training ends a cycle, it starts none
            turn = done * self.cycles % 1 if done < 1 else 1.0
            return 0.5 * (1 + math.cos(math.pi * turn))
        left = min((1 - share) / self.decay_share, 1.0)
        return left if self.schedule == "wsd" else 1 - math.sqrt(1 - left)

    def _one_cycle(self, share: float) -> float:
        rise = self.warmup or _RISE
        first = self.warmup_lr or self.lr / _DIVISOR
        last = self.min_lr or first / _FINAL
        start, end, done = (
            (first, self.lr, share / rise) if share < rise else (self.lr, last, (share - rise) / (1 - rise))
        )
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def _as_texts(field: str, values: Any) -> tuple[str, ...]:
    """Return settings as KEY=VALUE in the order of their keys; raises InputError for what is none."""
    if not isinstance(values, Mapping):
        for text in values:
            if not re.fullmatch(r"[^=\s]+=.+", str(text), re.DOTALL):
                raise InputError(f"optim.{field} has {text!r}; write KEY=VALUE, as betas=[0.9,0.95]")
        keys = [key for key, _ in _pairs(values)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise InputError(f"optim.{field} sets {twice[0]} twice; give it once")
        values = dict(_pairs(values))
    try:
        pairs = [(k, v if isinstance(v, str) else json.dumps(v, separators=(",", ":"))) for k, v in values.items()]
    except TypeError as error:
        raise InputError(f"optim.{field}: {error}; give numbers, texts or lists") from None
    return tuple(sorted(f"{key}={value}" for key, value in pairs))


def _pairs(texts: Any) -> list[tuple[str, Any]]:
    """Return key and value of each text; a value is JSON, else text."""
    pairs = []
    for text in texts:
        key, _, value = text.partition("=")
        try:
            content = json.loads(value)
        except json.JSONDecodeError:
            content = value
        pairs.append((key, tuple(content) if isinstance(content, list) else content))
    return pairs
