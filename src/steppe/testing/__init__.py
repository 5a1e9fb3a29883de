"""The conformance suite: properties that every training method must have, checked from outside.

    steppe.testing.check_method(MyMethod())

The same from the command line: ``steppe conformance my_module:MyMethod``.
"""

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Iterable, Sequence

from steppe import hardware
from steppe.core.method import Method
from steppe.errors import unknown
from steppe.testing.checks import CHECKS
from steppe.testing.context import Check, CheckContext
from steppe.testing.process_pool import as_one_line
from steppe.testing.result import CheckFailed, CheckResult, NotApplicable, Status
from steppe.testing.subjects import OurMethod, Subject
from steppe.testing.third_party import ThirdParty

__all__ = [
    "CHECKS",
    "CheckContext",
    "CheckResult",
    "OurMethod",
    "Subject",
    "ThirdParty",
    "check_method",
    "examine",
    "run",
]

Progress = Callable[[Subject, Check, CheckResult | None], None]


def check_method(method: Method, *, checks: Iterable[str] | None = None, device: str = "cpu") -> None:
    """Check a method; ``checks`` names some of `CHECKS`, by default all.

    Scripts that check distributed properties guard their main part with ``if __name__ == "__main__"``, because the
    second process imports them.

    Raises AssertionError with a table of the failures, InputError for an unknown check.
    """
    failures = [r for r in run([OurMethod(method)], checks=checks, device=device) if r.status == "fail"]
    if failures:
        lines = "\n".join(f"  {r.check:<14}{r.why}\n  {'':<14}({CHECKS[r.check].claim})" for r in failures)
        raise AssertionError(f"{method!r} fails {len(failures)} of its checks:\n{lines}")


def run(
    subjects: Sequence[Subject],
    *,
    checks: Iterable[str] | None = None,
    device: str = "cpu",
    timeout: float = 60.0,
    progress: Progress = lambda subject, check, result: None,
) -> list[CheckResult]:
    """Check every subject and return the results, subject by subject.

    All checks run on ``device``, 'cpu' or 'cuda'; those of two processes only if there is a GPU for each, else on
    the processor. ``timeout`` limits one job of two processes, in seconds. ``progress`` is called as each check
    begins, with None, and as it ends.

    Raises InputError for an unknown check.
    """
    chosen = [find(name) for name in (CHECKS if checks is None else checks)]
    results = []
    with hardware.threads(1), hardware.fork_rng(), CheckContext(device, timeout) as context:
        for subject in subjects:
            for check in chosen:
                progress(subject, check, None)
                result = examine(subject, check, context)
                progress(subject, check, result)
                results.append(result)
    return results


def find(name: str) -> Check:
    """Return the check of that name; raises InputError if there is none."""
    if name not in CHECKS:
        raise unknown("check", name, CHECKS)
    return CHECKS[name]


def examine(subject: Subject, check: Check, context: CheckContext) -> CheckResult:
    """Run one check of one subject; any exception in it is a failure of the subject."""
    start = time.perf_counter()
    status: Status = "pass"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            why = check.run(subject, context) or ""
    except CheckFailed as failure:
        status, why = "fail", str(failure)
    except NotApplicable as reason:
        status, why = "n/a", str(reason)
    except Exception as error:
        status, why = "fail", as_one_line(error)
    return CheckResult(subject.name, check.name, status, why, time.perf_counter() - start)
