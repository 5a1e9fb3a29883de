"""Where the command speaks: of several processes of a torchrun job only the lead does."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def in_torchrun() -> bool:
    """Return whether this is one of several processes that torchrun started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def shows_output() -> bool:
    """Return whether this process is the one that prints."""
    return not in_torchrun() or os.environ["RANK"] == "0"


def complain(message: str) -> None:
    """Print a line to the standard error."""
    if shows_output():
        print(f"steppe: {message}", file=sys.stderr, flush=True)


def console() -> Console:
    """Return where to print: as wide as the terminal or as the table; nowhere if this process is silent."""
    from rich.console import Console

    if not shows_output():
        return Console(quiet=True, force_terminal=False)
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(width=wide)
