"""Text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steppe.bench import StepCost
    from steppe.methods import MethodFacts


def methods(rows: Sequence[MethodFacts]) -> str:
    """Return a line per method."""
    head = ("method", "passes", "keeps", "source", "status", "what it does")
    lines = [head, *((r.name, r.cost, r.keeps, r.source, r.status, r.summary) for r in rows)]
    return (
        f"{aligned(lines)}\n\npasses: forward / backward / updates per step, at most; "
        "checked: conforms and agrees with a restatement of its equation; tried: also has a result in docs/results"
    )


def costs(rows: Sequence[StepCost]) -> str:
    """Return a line per measured method."""
    head = "method, passes, of plain, quartiles, floor, over floor, own loop, overhead, memory, ms"
    lines: list[tuple[str, ...]] = [tuple(head.split(", "))]
    for c in rows:
        passes = f"{c.forward:.3g}/{c.backward:.3g}/{c.updates:.3g}"
        default = "-" if c.over_floor_default is None else f"{100 * (c.over_floor_default - 1):+.1f}%"
        overhead = "-" if c.overhead is None else f"{100 * c.overhead.median:+.1f}%"
        spread = f"{c.low:.3f}-{c.high:.3f}"
        lines.append(
            (
                *(
                    c.method,
                    passes,
                    f"{c.ratio:.3f}",
                    spread,
                    f"{c.floor:.3f}",
                ),
                *(
                    f"{100 * (c.over_floor - 1):+.1f}%",
                    default,
                    overhead,
                    f"{c.memory:.2f}",
                    f"{c.milliseconds:.1f}",
                ),
            )
        )
    return (
        f"{aligned(lines)}\n\npasses: forward/backward/updates per step; floor: time of the counted passes in "
        "plain training, in plain steps;\nown loop: over floor with the C library's memory settings, as in a "
        "script of your own; our commands keep freed memory;\noverhead: time of a step outside forward and "
        "backward (copies, noise, update), minus plain's, as a share of the floor;\nmemory: peak of all tensors, "
        "over plain's"
    )


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells in aligned columns; the last column is not padded."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(f"{t:<{w}}" for t, w in zip(line[:-1], widths, strict=True)), line[-1]]) for line in lines
    )
