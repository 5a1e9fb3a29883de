"""The one exception a user meets: what was wrong, where, and the way out, in a single line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given from outside cannot be used.

    The message is one line that names the field, the value and the remedy; the command line prints it
    without a traceback and exits with code 2.
    """


class RunError(RuntimeError):
    """A run started well and could not go on (non-finite loss, full disk, damaged checkpoint)."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the names in ``known`` most like ``name``, best first."""
    folded = {k.lower(): k for k in known}
    hits = difflib.get_close_matches(name.lower(), folded, n=count, cutoff=0.5)
    return [folded[h] for h in hits]


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> InputError:
    """Build the error for a name that nobody has: the nearest names, or all of them if few."""
    known = sorted(known)
    near = nearest(name, known)
    if near:
        way_out = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif len(known) <= 40:
        way_out = "known: " + ", ".join(known)
    else:
        way_out = ""
    return InputError(" ".join(f"unknown {kind} {name!r}; {way_out} {hint}".split()))
