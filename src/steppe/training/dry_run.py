"""What a training will do and when, known before it starts: ``steppe train --plan``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from steppe import methods
from steppe.config import Optim, Run
from steppe.core.composition import ActiveWindow, parts
from steppe.core.method import Method
from steppe.core.schedules import Schedule, TrainingProgress, format_schedule, value_at
from steppe.data.dataset import DataSet
from steppe.training.factories import make_loader
from steppe.training.optimizers import learning_rate
from steppe.training.run import format_bytes, memory_bytes

LearningRate = Callable[[float], float]  # of the share of the budget that is spent


@dataclass(frozen=True)
class Phase:
    """Steps ``first`` to ``last``, counted from 1; a method is active on every ``every``-th, ``count`` in all.

    With ``every`` 1 fewer steps than all are spread evenly.
    """

    first: int
    last: int
    every: int
    count: int

    def __str__(self) -> str:
        if self.first == self.last:
            return f"step {self.first}"
        spread = "" if self.count == self.last - self.first + 1 else ", evenly spread"
        interval = spread if self.every == 1 else f", every {_ordinal(self.every)}"
        return f"steps {self.first}-{self.last}{interval}"


def plan(run: Run, images: DataSet) -> list[tuple[str, str]]:
    """Return label and text of each line of a run's plan.

    If the budget is not in epochs, the number of steps is unknown; the plan then shows that of as many epochs.
    """
    per_epoch = len(make_loader(run, images))
    total = run.epochs * per_epoch
    steps = f"{total} steps, {per_epoch} an epoch"
    if run.match != "epochs":
        steps += f" (an example: the number that {run.match} allow is known at the end; shares refer to it)"
    lines = [("steps", steps), *describe(run.method, total, per_epoch, learning_rate(run, total), run.optim)]
    count = memory_bytes(run, images)
    return [*lines, ("memory", f"{format_bytes(count)} of past outputs")] if count else lines


def phases(method: Method, total: int, lr_at: LearningRate, decay_start: float | None = None) -> list[Phase]:
    """Return when a method is active in a training of ``total`` steps."""
    if not isinstance(method, ActiveWindow):
        return [Phase(1, total, 1, total)]
    active = method.active_steps(total, lr_at, decay_start)
    return [Phase(active[0] + 1, active[-1] + 1, method.every, len(active))] if active else []


def describe(
    method: Method, total: int, per_epoch: int, lr_at: LearningRate, optim: Optim | None = None
) -> list[tuple[str, str]]:
    """Return label and text of each line: when each part of a method is active, and how its values change."""
    name, decay_start = (f"{optim.schedule}: ", optim.decay_start) if optim else ("", None)
    lines = [("learning rate", name + _values(lambda t: lr_at(t / total), 0, total))]
    if decay_start is not None:
        first = next(t for t in range(total + 1) if t >= decay_start * total)
        lines.append(("  decay", f"steps {first + 1}-{total}"))
    for part in parts(method):
        inner = part.method if isinstance(part, ActiveWindow) else part
        active = phases(part, total, lr_at, decay_start)
        if not active:
            lines.append((methods.label(inner), f"never: no step of {total} is in its window"))
            continue
        (phase,) = active
        epochs = _span((phase.first - 1) // per_epoch + 1, (phase.last - 1) // per_epoch + 1)
        rest = "" if phase.count == total else f", {phase.count} in all; the others are plain"
        lines.append((methods.label(inner), f"{phase} ({epochs}){rest}"))
        lines += [(f"  {name}", value) for name, value in _scheduled(part, phase, total, lr_at, decay_start)]
    return lines


def _scheduled(
    part: Method, phase: Phase, total: int, lr_at: LearningRate, decay_start: float | None
) -> Iterator[tuple[str, str]]:
    """Yield name and values of each hyper-parameter that has a schedule."""
    method = part.method if isinstance(part, ActiveWindow) else part
    for f in fields(method):
        value = getattr(method, f.name)
        if isinstance(value, Schedule):

            def at(t: int, value: Schedule = value) -> float:
                now = TrainingProgress(t, t / total, lr_at(t / total), decay_start)
                return value_at(
                    value, replace(now, window=part.done(now)) if isinstance(part, ActiveWindow) else now
                )

            yield f.name, f"{format_schedule(value)}: {_values(at, phase.first - 1, phase.last)}"


def _values(value: Callable[[int], float], first: int, end: int) -> str:
    """Return a value at the first step, in the middle and at the last; once if it is constant."""
    values = [f"{value(t):.3g}" for t in (first, (first + end - 1) // 2, end - 1)]
    if len(set(values)) == 1:
        return values[0]
    return "{} at first, {} halfway, {} at last".format(*values)


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _span(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first}-{last}"
