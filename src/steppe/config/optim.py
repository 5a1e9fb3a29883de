"""The options of the optimizer and of its learning rate."""

import math
from dataclasses import dataclass
from typing import Literal

from steppe.config._checks import check_choices, check_positive
from steppe.errors import InputError

Optimizer = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["cosine", "constant", "step"]


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and learning rate schedule.

    Attributes:
        name: adam, adamw or sgd.
        lr: Initial learning rate.
        momentum: Momentum of sgd; adam and adamw ignore it.
        nesterov: Use Nesterov momentum.
        eps: Added to the denominator of adam and adamw (PyTorch's default 1e-8, Keras's 1e-7); sgd ignores it.
        weight_decay: Weight decay, applied by the optimizer.
        schedule: 'cosine' decays the rate to min_lr over the run's budget, once per step; 'constant' keeps it;
            'step' divides it by ten at half and again at three quarters of the budget.
        min_lr: Rate at which the cosine ends.
        warmup: Share of the budget in which the rate rises linearly from warmup_lr to lr; it replaces the
            first part of the schedule.
        warmup_lr: Rate at which the warm-up starts.
        label_smoothing: Share of each target that is spread evenly over all classes in the training loss.
        clip: Largest L2 norm of all gradients together; no clipping if not given.
        clip_each: Clip each network or branch of a method that trains several by its own norm.
    """

    name: Optimizer = "adam"
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    clip: float | None = None
    nesterov: bool = False
    warmup: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    clip_each: bool = False
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_choices(self, "optim.")
        for name in ("lr", "weight_decay", "momentum", "eps", "warmup_lr", "min_lr"):
            check_positive(f"optim.{name}", getattr(self, name), strict=False)
        check_positive("optim.clip", self.clip)
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
        for name in ("warmup_lr", "min_lr"):
            if getattr(self, name) > self.lr:
                raise InputError(
                    f"optim.{name} is {getattr(self, name)} and optim.lr {self.lr}; give at most that"
                )

    def lr_at(self, share: float) -> float:
        """Return the learning rate once this share s of the budget is spent.

        Up to s = warmup it is warmup_lr + (lr - warmup_lr) s / warmup, then lr, or with the cosine schedule
        min_lr + (lr - min_lr) (1 + cos(pi s)) / 2.
        """
        if share < self.warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * share / self.warmup
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr * (1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
