"""The outcomes of a check."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "n/a"]


class CheckFailed(AssertionError):  # noqa: N818 - an outcome, not a programming error
    """The property does not hold; the message says what was measured."""


class NotApplicable(Exception):  # noqa: N818 - an outcome, not a programming error
    """The check does not apply to this subject; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of one subject; ``why`` is the reason, or a remark on a pass."""

    subject: str
    check: str
    status: Status
    why: str = ""
    seconds: float = 0.0
