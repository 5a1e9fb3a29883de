"""How one fault ended, and what a class of them comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["held", "lost", "traceback", "outside", "not run"]
SHOWN = 12  # failures that a row quotes


@dataclass(frozen=True)
class Case:
    """One fault: what was done, and how it ended; ``detail`` says what happened where it did not hold.

    'lost': work is gone, a wrong state was used, or bad input was taken. 'traceback': something other than the
    promised line came out. 'outside': something was written or run where nothing may be. 'not run': this machine
    cannot show it, and ``detail`` says why.
    """

    name: str
    verdict: Verdict
    detail: str = ""


def compared(name: str, wrong: str | None) -> Case:
    """Return a case that was lost in ``wrong``, or held if that says nothing."""
    return Case(name, "lost", wrong) if wrong else Case(name, "held")


@dataclass(frozen=True)
class Where:
    """The folder that a class may use, and the defect that is planted in the product, if one is."""

    scratch: Path
    plant: str | None = None


@dataclass(frozen=True)
class Row:
    """What a class came to; ``planted`` says by defect in how many cases it was caught, and how.

    ``missing`` is what was not run, and why; it is none of the ``cases``.
    """

    name: str
    title: str
    command: str
    cases: int
    lost: int
    tracebacks: int
    outside: int
    seconds: float
    cpu: float
    planted: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        bad = self.lost + self.tracebacks + self.outside
        return bool(self.cases) and not bad and all(text.startswith("caught") for text in self.planted.values())

    @classmethod
    def of(cls, data: dict[str, Any]) -> Row:
        return cls(**{**data, "failures": tuple(data["failures"]), "missing": tuple(data["missing"])})


def summed(name: str, title: str, command: str, cases: Iterable[Case], seconds: float, cpu: float) -> Row:
    """Return the row of these cases, without planted defects."""
    tried = list(cases)
    missing = tuple(f"{c.name}: {c.detail}" for c in tried if c.verdict == "not run")
    cases = [case for case in tried if case.verdict != "not run"]
    counts = Counter(case.verdict for case in cases)
    bad = [f"{c.verdict}: {c.name}: {c.detail}" for c in cases if c.verdict != "held"]
    totals = counts["lost"], counts["traceback"], counts["outside"]
    spent = round(seconds, 1), round(cpu, 1)
    return Row(name, title, command, len(cases), *totals, *spent, {}, tuple(bad[:SHOWN]), missing)


def caught(cases: Iterable[Case]) -> str:
    """Return how a planted defect showed in these cases."""
    cases = [case for case in cases if case.verdict != "not run"]
    counts = Counter(case.verdict for case in cases if case.verdict != "held")
    counted = ", ".join(f"{verdict} {n}" for verdict, n in sorted(counts.items()))
    return f"caught ({counted} of {len(cases)})" if counts else f"MISSED in {len(cases)} cases"
