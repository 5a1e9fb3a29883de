"""A check, and what all checks share: the device, two processes, a network that is compiled once.

On a GPU the checks use deterministic algorithms and no TF32, because they compare bits and small differences. Two
processes need a GPU each, and run on the processor if there is only one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from steppe import hardware
from steppe.config.docstrings import docstring
from steppe.testing.process_pool import SIZE, ProcessPool
from steppe.testing.subjects import Subject, SubjectOptions


@dataclass
class CheckContext:
    """What checks share; ``timeout`` is the longest that two processes may take for one job, in seconds."""

    device: str = "cpu"
    timeout: float = 60.0
    pool: ProcessPool = field(init=False)
    compiled: nn.Module | None = None
    _exact: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.pool = ProcessPool(self.timeout, self.pool_device)

    def __enter__(self) -> CheckContext:
        self._exact.enter_context(exact_results(self.device))
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._exact.close()
        self.pool.close(kill=kind is not None)

    @property
    def pool_device(self) -> str:
        """The device of the two processes."""
        return self.device if self.device != "cuda" or torch.cuda.device_count() >= SIZE else "cpu"

    def options(self, **settings: Any) -> SubjectOptions:
        """Return the options of a subject that trains on the device of the checks."""
        return SubjectOptions(device=self.device, **settings)


@contextmanager
def exact_results(device: str) -> Iterator[None]:
    """Within the context use deterministic algorithms and no TF32, if the device is a GPU."""
    cudnn, tf32 = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    with hardware.deterministic(device == "cuda"):
        try:
            cudnn.allow_tf32 = tf32 and device != "cuda"
            yield
        finally:
            cudnn.allow_tf32 = tf32


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
