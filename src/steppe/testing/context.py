"""A check, and what all checks share: the device, two processes, a network that is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from steppe.config.docstrings import docstring
from steppe.testing.process_pool import ProcessPool
from steppe.testing.subjects import Subject


@dataclass
class CheckContext:
    """What checks share; ``timeout`` is the longest that two processes may take for one job, in seconds."""

    device: str = "cpu"
    timeout: float = 60.0
    pool: ProcessPool = field(init=False)
    compiled: nn.Module | None = None

    def __post_init__(self) -> None:
        self.pool = ProcessPool(self.timeout)

    def __enter__(self) -> CheckContext:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.pool.close(kill=kind is not None)


@dataclass(frozen=True)
class Check:
    """A property that every method must have.

    ``claim`` states it, ``consequence`` what happens to users of a method without it. ``run`` raises `CheckFailed`
    or `NotApplicable`, and may return a remark.
    """

    name: str
    claim: str
    consequence: str
    run: Callable[[Subject, CheckContext], str | None]


def check(name: str, consequence: str) -> Callable[[Callable[[Subject, CheckContext], str | None]], Check]:
    """Make a `Check` of a function, whose docstring is the claim."""
    return lambda run: Check(name, docstring(run), consequence, run)
