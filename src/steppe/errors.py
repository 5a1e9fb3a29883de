"""The exceptions that a user meets; each message is one line with the field, the value and the remedy."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An argument, option or file cannot be used; the command line prints the message and exits with code 2."""


class RunError(RuntimeError):
    """A run failed after it had started (non-finite loss, full disk, damaged checkpoint)."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return those of ``names`` that are most like ``name``, best first."""
    folded = {n.lower(): n for n in names}
    return [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=count, cutoff=0.5)]


def unknown(kind: str, name: str, names: Iterable[str], hint: str = "") -> InputError:
    """Return the error for an unknown name, with the nearest of ``names``, or with all of them if they are few.

    ``hint`` follows in parentheses.
    """
    names = sorted(names)
    near = nearest(name, names)
    remedies = []
    if near:
        remedies = ["did you mean " + " or ".join(repr(n) for n in near) + "?"]
    elif not names:
        remedies = ["it has none"]
    elif len(names) <= 40:
        remedies = ["known: " + ", ".join(names)]
    if hint:
        remedies.append(f"({hint})" if remedies else hint)
    return InputError(" ".join(f"unknown {kind} {name!r}; {' '.join(remedies) or 'check its spelling'}".split()))
