"""Lists for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steppe.bench import StepCost, StoreCost
    from steppe.methods import MethodFacts


def methods(rows: Sequence[MethodFacts]) -> str:
    """Return a line per method, its columns as wide as they must be."""
    head = ("method", "passes", "keeps", "source", "status", "what it does")
    lines = [head, *((r.name, r.cost, r.keeps, r.source, r.status, r.summary) for r in rows)]
    return (
        f"{aligned(lines)}\n\npasses: forward / backward / updates per step, at most; "
        "checked: restated and conforming; tried: with a trial in docs/results"
    )


def costs(rows: Sequence[StepCost]) -> str:
    """Return a line per measured method."""
    lines = [("method", "passes", "of plain", "quartiles", "floor", "above it", "beside", "memory", "ms")]
    for c in rows:
        passes = f"{c.forward:.3g}/{c.backward:.3g}/{c.updates:.3g}"
        above = f"{100 * (c.over_floor - 1):+.1f}%"
        beside = "-" if c.beside is None else f"{100 * c.beside.median:+.1f}%"
        spread = f"{c.low:.3f}-{c.high:.3f}"
        lines.append(
            (
                *(c.method, passes, f"{c.ratio:.3f}", spread, f"{c.floor:.3f}", above),
                *(beside, f"{c.memory:.2f}", f"{c.milliseconds:.1f}"),
            )
        )
    return (
        f"{aligned(lines)}\n\nfloor: what its counted passes cost in plain training, in steps of plain; "
        "memory: the most that tensors take, over plain's;\nbeside: what a step does beside its passes, over what "
        "as many plain steps do, in parts of the floor"
    )


def stores(rows: Sequence[StoreCost]) -> str:
    """Return a line per store of past outputs."""
    lines = [("form", "declared, MB", "held, MB", "write, ms", "read, ms", "KL kept", "direction kept")]
    for s in rows:
        sizes = (f"{s.declared / 1e6:.1f}", f"{s.held / 1e6:.1f}", f"{s.write:.1f}", f"{s.read:.1f}")
        lines.append((s.form, *sizes, f"{s.kl_stored / s.kl:.1%}", f"{s.angle:.3f}"))
    return (
        f"{aligned(lines)}\n\nmilliseconds per batch of 1024; KL kept: the divergence from what is stored, in "
        "parts of that from all outputs;\ndirection kept: cosine between the two gradients (made-up logits, T = 5)"
    )


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells in columns; the last column is as long as it is."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(f"{t:<{w}}" for t, w in zip(line[:-1], widths, strict=True)), line[-1]]) for line in lines
    )
