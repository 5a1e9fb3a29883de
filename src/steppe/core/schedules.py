"""Hyper-parameters that change while training goes on."""

import math
import numbers
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from steppe.errors import InputError


@dataclass(frozen=True)
class TrainingProgress:
    """Where training is: the ``step``, from 0; the ``share`` that is done, None if unknown; the learning rate,
    NaN if unknown, a tensor if it is one in the optimizer.

    ``decay_start`` is the share at which the learning rate's schedule begins to decay, None if it has no such
    phase, and ``window`` the fraction that is done of the window in which a method is active, None outside of one.
    Amounts of training are whole numbers of steps or, below 1, shares of the whole.
    """

    step: int
    share: float | None
    lr: float
    decay_start: float | None = None
    window: float | None = None

    def reached(self, amount: float, field: str) -> bool:
        """Return whether this much of the training is done; raises InputError for an unknown share."""
        return self.step >= amount if _in_steps(amount) else self._share(amount, field) >= amount

    def part_of(self, amount: float | None, field: str) -> float:
        """Return the fraction of this amount that is done, at most 1; None is the whole training."""
        if amount is None:
            return min(self._share(1.0, field), 1.0)
        done = self.step if _in_steps(amount) else self._share(amount, field)
        return 1.0 if done >= amount else done / amount

    def part_between(self, first: float, end: float | None, field: str) -> float:
        """Return the fraction that is done of what is between two amounts; without ``end`` up to the whole."""
        if end is not None and _in_steps(first) and _in_steps(end):
            return (self.step - first) / (end - first)
        share = self._share(first, field)
        per_step = share / self.step if self.step else 0.0
        a, b = (1.0 if t is None else t * per_step if _in_steps(t) else t for t in (first, end))
        return (share - a) / (b - a) if b > a else 1.0

    def _share(self, amount: float, field: str) -> float:
        if self.share is None:
            raise InputError(
                f"{field} is {amount:g}, a share of the training, and its length is unknown; "
                "give whole steps, or bind with steps=..."
            )
        return self.share


def _in_steps(amount: float) -> bool:
    return amount >= 1 or amount == 0 or isinstance(amount, int)


def finite(value: Any) -> bool:
    """Return whether this is a finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float
        return False


def check_length(method: Any, now: TrainingProgress) -> None:
    """Raise InputError, before the first step, if a setting is a share of a training of unknown length.

    Methods that it is composed of are checked too, unless their settings make them plain training.
    """
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    if _is_plain(method, values):
        return
    reason = getattr(method, "needs_length", "")
    if reason and now.share is None:
        raise InputError(f"{reason}, and its length is unknown; bind with steps=...")
    if getattr(method, "has_ramps", False):
        now = replace(now, window=method.done(now))
    for name, value in values.items():
        if isinstance(value, Linear | Cosine | Power | Ramp):
            value.at(now)
        elif name == "tail" and value is not None and now.share is None:
            raise InputError(
                f"tail is {value}, a share of the training, and its length is unknown; bind with steps=..."
            )
        elif name in method.amounts and value is not None:
            now.reached(value, name)
        elif hasattr(value, "limits"):  # a method
            check_length(value, now)


def check_decay(method: Any) -> None:
    """Raise InputError if a method, or one that it is composed of, is active while a schedule decays."""
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    if values.get("tail") == DECAY:
        raise no_decay()
    for value in values.values():
        if hasattr(value, "limits"):  # a method
            check_decay(value)


DECAY = "decay"  # the tail that is the decay phase of the schedule


def no_decay() -> InputError:
    """Return the error for a tail that follows a schedule without a decay phase."""
    return InputError(
        "tail is 'decay' and the schedule has no decay phase of its own; use optim.schedule wsd (in your own loop "
        "bind with decay_start=0.8), or give a share as tail=0.3"
    )


def check_start(method: Any, steps: float) -> None:
    """Raise InputError if a method, or one that it is composed of, starts after a training of so many steps.

    A share of the training is always within it, and settings that make a method plain training start nothing.
    """
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    if _is_plain(method, values):
        return
    start = values.get("start") if "start" in method.amounts else None
    if start is not None and start >= max(steps, 1):
        name = type(values.get("method", method)).__name__
        raise InputError(
            f"{name}: start is {start:g} and the training has {steps:g} steps, so that it is never active; give "
            "an earlier step, or a share of the training such as 0.5"
        )
    for value in values.values():
        if hasattr(value, "limits"):  # a method
            check_start(value, steps)


def _is_plain(method: Any, values: dict[str, Any]) -> bool:
    return any(limit and limit.items() <= values.items() for limit in (method.limit, *method.limits))


def is_moment(every: Any) -> bool:
    """Return whether this is text that `due` takes: '5b' or '1e'."""
    return isinstance(every, str) and re.fullmatch(r"[1-9]\d*[be]", every) is not None


def due(every: str, step: int, epoch: int | None) -> bool:
    """Return whether something that happens every '5b' or '1e' happens in this step (from 0).

    '5b' is every fifth step, counted in each epoch if its length ``epoch`` is known; '1e' is the last step of each
    epoch. Raises InputError if it needs an epoch's length.
    """
    count = int(every[:-1])
    if every.endswith("b"):
        return (step % epoch if epoch else step) % count == 0
    if epoch is None:
        raise InputError(
            f"every is {every!r} and the length of an epoch is unknown; bind with epoch=len(loader), or give "
            "every in batches ('5b')"
        )
    return (step + 1) % epoch == 0 and step // epoch % count == 0


class Schedule(ABC):
    """A value as a function of where training is.

    Raises InputError for a field of type float that is not a finite number.
    """

    def __post_init__(self) -> None:
        own: Any = fields(self) if is_dataclass(self) else ()
        for f in own:
            value, union = getattr(self, f.name), isinstance(f.type, types.UnionType)
            allowed = typing.get_args(f.type) if union else (f.type,)
            if float in allowed and not (value is None and type(None) in allowed):
                if not finite(value):
                    raise InputError(f"{type(self).__name__}: {f.name} is {value!r}; give a finite number")
                object.__setattr__(self, f.name, float(value))  # equal schedules have equal texts

    @abstractmethod
    def at(self, now: TrainingProgress) -> float:
        """Return the value."""


def _check_over(over: float | None) -> None:
    if over is not None and over <= 0:
        raise InputError(f"over is {over:g}; give a number of steps, a share of the training below 1, or None")


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line over ``over`` (by default the whole training), then ``end``."""

    start: float
    end: float
    over: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_over(self.over)

    def at(self, now: TrainingProgress) -> float:
        """Return start + (end - start) min(t / over, 1)."""
        done = now.part_of(self.over, "over")
        return self.end if done == 1 else self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class Cosine(Schedule):
    """From ``start`` to ``end`` along half a cosine over ``over`` (by default all of training), then ``end``."""

    start: float
    end: float
    over: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_over(self.over)

    def at(self, now: TrainingProgress) -> float:
        """Return end + (start - end) (1 + cos(pi t / over)) / 2."""
        done = now.part_of(self.over, "over")
        if done == 1:
            return self.end
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Power(Schedule):
    """From ``start`` to ``end`` along a power of the part that is done of ``over``, then ``end``."""

    start: float
    end: float
    exponent: float
    over: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_over(self.over)
        if self.exponent <= 0:
            raise InputError(f"exponent is {self.exponent:g}; give a number above 0, as 3")

    def at(self, now: TrainingProgress) -> float:
        """Return start + (end - start) min(t / over, 1)^exponent."""
        done = now.part_of(self.over, "over")
        return self.end if done == 1 else self.start + (self.end - self.start) * done**self.exponent


@dataclass(frozen=True)
class Ramp(Schedule):
    """From ``start`` to ``end`` in a straight line over ``part`` of the method's window, then ``end``.

    The window is that of `ActiveWindow` (``start``, ``stop``, ``tail``), without one the whole training.
    """

    start: float
    end: float
    part: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.part <= 1:
            raise InputError(f"part is {self.part:g}; give a part of the window, above 0 and at most 1")

    def at(self, now: TrainingProgress) -> float:
        """Return start + (end - start) min(u / part, 1), u the fraction of the window that is done."""
        window = now.part_of(None, "ramp") if now.window is None else now.window
        done = min(window / self.part, 1.0)
        return self.end if done == 1 else self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class WithLR(Schedule):
    """Tied to the learning rate of the optimizer's first group: ``low`` at ``lr_min``, ``high`` at ``lr_max``.

    As GSAM schedules rho (Zhuang et al., ICLR 2022, algorithm 1):
    low + (high - low) (lr - lr_min) / (lr_max - lr_min); ``low`` below ``lr_min``, ``high`` above ``lr_max``.
    """

    high: float
    lr_max: float
    low: float = 0.0
    lr_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lr_max > self.lr_min:
            raise InputError(f"lr_max is {self.lr_max:g} and lr_min {self.lr_min:g}; give a larger lr_max")

    def at(self, now: TrainingProgress) -> float:
        """Return the value at the present learning rate; raises InputError if the optimizer has none."""
        present = float(now.lr)
        if math.isnan(present):
            raise InputError("a schedule follows the learning rate, and the optimizer's is None; give it a number")
        lr = min(max(present, self.lr_min), self.lr_max)
        return self.low + (self.high - self.low) * (lr - self.lr_min) / (self.lr_max - self.lr_min)


@dataclass(frozen=True)
class FunctionSchedule(Schedule):
    """Any function of the step number, which counts from 0."""

    function: Callable[[int], float]

    def at(self, now: TrainingProgress) -> float:
        """Return function(t)."""
        return float(self.function(now.step))

    def __repr__(self) -> str:
        return f"FunctionSchedule({getattr(self.function, '__qualname__', type(self.function).__name__)})"


ScheduleValue = float | Schedule
NAMED: dict[str, Callable[..., Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "with-lr": WithLR,
    "ramp": Ramp,
    "power": Power,
}


def value_at(value: ScheduleValue, now: TrainingProgress) -> float:
    """Return a constant itself, a schedule's value now."""
    return value.at(now) if isinstance(value, Schedule) else value


def lowest(value: ScheduleValue) -> float:
    """Return the least value that it can have, infinity if unknown."""
    if isinstance(value, Linear | Cosine | Power | Ramp):
        return min(value.start, value.end)
    if isinstance(value, WithLR):
        return min(value.low, value.high)
    return math.inf if isinstance(value, Schedule) else value


def parse_schedule(text: str) -> Schedule | None:
    """Return the schedule of a text such as ``linear(0,0.1,0.5)``, None if the text is not one.

    Raises InputError for the name of a schedule with wrong numbers.
    """
    match = re.fullmatch(r"([a-z-]+)\(([^()]*)\)", text.strip())
    if not match or match[1] not in NAMED:
        return None
    try:
        numbers = [int(n) if re.fullmatch(r"\s*\d+\s*", n) else float(n) for n in match[2].split(",")]
        return NAMED[match[1]](*numbers)
    except InputError:
        raise
    except (ValueError, TypeError):
        raise InputError(f"{text!r} is not a schedule; write {_USAGE[match[1]]}") from None


def format_schedule(value: ScheduleValue) -> str:
    """Return a value as text that `parse_schedule` reads, in which equal values alone are equal."""
    if isinstance(value, Schedule):
        name = next((k for k, v in NAMED.items() if v is type(value)), None)
        if name is None:
            return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        return f"{name}({','.join(_exact(n) for n in vars(value).values() if n is not None)})"
    return _exact(value)


def _exact(number: float) -> str:
    short = f"{number:g}"
    return (short if float(short) == number else repr(number)).replace("e+", "e")  # plus combines methods


_USAGE = {
    "linear": "linear(start,end) or linear(start,end,steps), steps below 1 a share of training",
    "cosine": "cosine(start,end) or cosine(start,end,steps), steps below 1 a share of training",
    "power": "power(start,end,exponent) or power(start,end,exponent,steps), steps below 1 a share of training",
    "ramp": "ramp(start,end) or ramp(start,end,part), part of the method's window",
    "with-lr": "with-lr(high,lr_max) or with-lr(high,lr_max,low,lr_min)",
}
