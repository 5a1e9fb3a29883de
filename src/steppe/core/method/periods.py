"""When a mean takes the next network: after so many steps, or at the end of so many epochs."""

from typing import Any

from steppe.core.runtime import Runtime
from steppe.core.schedules import due, is_moment

PERIODS = "at least 1 step, or the end of epochs such as '1e'"


def is_period(value: Any) -> bool:
    """Return whether this is a number of steps, or of epochs as text: 100, '1e'."""
    return value >= 1 if isinstance(value, int) else is_moment(value) and value.endswith("e")


def period_length(every: int | str | None, rt: Runtime) -> int:
    """Return the steps of a period; without one those of an epoch, 10 if these are unknown."""
    if isinstance(every, int):
        return every
    return (rt.options.epoch or 10) * int((every or "1e")[:-1])


def period_ends(every: int | str | None, rt: Runtime, first: int = 0) -> bool:
    """Return whether a period ends with this step; periods of steps begin with step ``first``.

    Raises InputError for epochs of unknown length.
    """
    if isinstance(every, str):
        return due(every, rt.now.step, rt.options.epoch)
    return (rt.now.step + 1 - first) % period_length(every, rt) == 0
