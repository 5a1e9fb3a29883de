"""What a training will do and when, told before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from steppe.core.composition import ActiveWindow
from steppe.core.method import Method
from steppe.core.schedules import Schedule, TrainingProgress, format_schedule, value_at
from steppe.methods import label


@dataclass(frozen=True)
class Phase:
    """Steps ``first`` to ``last``, counted from 1, in which a method works on every ``every``-th step."""

    first: int
    last: int
    every: int

    def __str__(self) -> str:
        if self.first == self.last:
            return f"step {self.first}"
        rhythm = "" if self.every == 1 else f", every {_ordinal(self.every)}"
        return f"steps {self.first}-{self.last}{rhythm}"


def phases(method: Method, total: int, lr_at: Callable[[float], float]) -> list[Phase]:
    """Return when a method works in a training of ``total`` steps; ``lr_at(share)`` is the learning rate."""
    if not isinstance(method, ActiveWindow):
        return [Phase(1, total, 1)]
    active = [t for t in range(total) if method.active(TrainingProgress(t, t / total, lr_at(t / total)))]
    return [Phase(active[0] + 1, active[-1] + 1, method.every)] if active else []


def describe(method: Method, total: int, per_epoch: int, lr_at: Callable[[float], float]) -> list[tuple[str, str]]:
    """Return label and text of each line of the plan: when each part works, and how its values move."""
    lines = [("learning rate", _course(lambda t: lr_at(t / total), 0, total))]
    for part in _parts(method):
        inner = part.method if isinstance(part, ActiveWindow) else part
        active = phases(part, total, lr_at)
        if not active:
            lines.append((label(inner), f"never: no step of {total} is in its window"))
            continue
        (phase,) = active
        epochs = _span((phase.first - 1) // per_epoch + 1, (phase.last - 1) // per_epoch + 1)
        count = len(range(phase.first, phase.last + 1, phase.every))
        rest = "" if count == total else f", {count} in all; the others are plain"
        lines.append((label(inner), f"{phase} ({epochs}){rest}"))
        lines += [(f"  {name}", value) for name, value in _moving(inner, phase, total, lr_at)]
    return lines


def _parts(method: Method) -> Iterator[Method]:
    """Yield the methods that a combination is made of."""
    inner = [value for f in fields(method) if isinstance(value := getattr(method, f.name), Method)]
    if isinstance(method, ActiveWindow) or not inner:
        yield method
    else:
        for one in inner:
            yield from _parts(one)


def _moving(
    method: Method, phase: Phase, total: int, lr_at: Callable[[float], float]
) -> Iterator[tuple[str, str]]:
    for f in fields(method):
        value = getattr(method, f.name)
        if isinstance(value, Schedule):

            def at(t: int, value: Schedule = value) -> float:
                return value_at(value, TrainingProgress(t, t / total, lr_at(t / total)))

            yield f.name, f"{format_schedule(value)}: {_course(at, phase.first - 1, phase.last)}"


def _course(value: Callable[[int], float], first: int, end: int) -> str:
    """Return a value at the first step, in the middle and at the last; once if it never moves."""
    shown = [f"{value(t):.3g}" for t in (first, (first + end - 1) // 2, end - 1)]
    if len(set(shown)) == 1:
        return shown[0]
    return "{} at first, {} halfway, {} at last".format(*shown)


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _span(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first}-{last}"
