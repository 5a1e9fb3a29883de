"""What checks share: the device asked for, the pool of processes, a network that is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from steppe.testing.process_pool import ProcessPool
from steppe.testing.subjects import Subject

if TYPE_CHECKING:
    from types import TracebackType


@dataclass
class CheckContext:
    """Where checks are run; ``timeout`` is the longest that two processes may take for one job, in seconds."""

    device: str = "cpu"
    timeout: float = 60.0
    pool: ProcessPool = field(init=False)
    compiled: nn.Module | None = None

    def __post_init__(self) -> None:
        self.pool = ProcessPool(self.timeout)

    def __enter__(self) -> CheckContext:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.close(kill=error is not None)


@dataclass(frozen=True)
class Check:
    """An invariant: its name, what holds where it passes, what a failure means to a user, and how to find out.

    ``run`` raises `steppe.testing.result.CheckFailed` or `NotApplicable`, and may return a remark.
    """

    name: str
    says: str
    otherwise: str
    run: Callable[[Subject, CheckContext], str | None]
