"""Lists for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from steppe.methods import Row


def methods(rows: Sequence[Row]) -> str:
    """Return a line per method, its columns as wide as they must be."""
    head = ("method", "passes", "keeps", "source", "what it does")
    lines = [head, *((r.name, r.cost, r.keeps, r.source, r.summary) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    text = [
        "  ".join([*(f"{t:<{w}}" for t, w in zip(line[:-1], widths, strict=True)), line[-1]]) for line in lines
    ]
    return "\n".join([*text, "", "passes: forward / backward / updates per step, at most"])
