"""What a check ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "n/a"]


class CheckFailed(AssertionError):  # noqa: N818 - an outcome, not a programming error
    """An invariant does not hold; the message says what was seen."""


class NotApplicable(Exception):  # noqa: N818 - an outcome, not a programming error
    """An invariant says nothing about this subject; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """How one check of one subject ended; ``why`` is the reason, or a remark on a pass."""

    subject: str
    check: str
    status: Status
    why: str = ""
    seconds: float = 0.0
