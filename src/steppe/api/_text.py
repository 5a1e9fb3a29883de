"""Tables as plain text."""

import io
from typing import Any

from rich.console import Console


def rendered(*tables: Any, width: int = 120) -> str:
    """Return rich tables as text without colours."""
    # in a notebook rich would show the text itself, beside what it is returned for
    console = Console(
        file=io.StringIO(), width=width, markup=False, emoji=False, color_system=None, force_jupyter=False
    )
    for table in tables:
        console.print(table)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    return "\n".join(lines).strip("\n")
