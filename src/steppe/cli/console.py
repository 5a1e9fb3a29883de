"""Where the commands print: in a torchrun job only the main process does."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def in_torchrun() -> bool:
    """Return whether this is one of several processes that torchrun started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def shows_output() -> bool:
    """Return whether this process prints."""
    return not in_torchrun() or os.environ["RANK"] == "0"


def print_error(message: str) -> None:
    """Print a line to the standard error."""
    if shows_output():
        print(f"steppe: {message}", file=sys.stderr, flush=True)


def open_streams() -> None:
    """Replace closed standard streams by silent ones; characters without an encoding are printed as ?."""
    # in this order, so that no other file is opened as descriptor 1 or 2, where libraries print
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def console(*, stderr: bool = False) -> Console:
    """Return the console: as wide as the terminal, 120 columns in a file, silent on other ranks."""
    from rich.console import Console

    if not shows_output():
        return Console(quiet=True, force_terminal=False, stderr=stderr)
    columns = os.environ.get("COLUMNS", "")
    chosen = columns.isdigit() and int(columns) > 0
    stream = sys.stderr if stderr else sys.stdout
    # rich takes COLUMNS=0 as it is, and prints nothing
    width = None if chosen or (stream.isatty() and not columns) else 120
    # folders and classes may be named like rich's markup: folder:dog: is printed as it is
    return Console(width=width, stderr=stderr, markup=False, emoji=False)


def print_text(terminal: Console, text: str) -> None:
    """Print a text as it is: without wrapping, colours or markup."""
    terminal.print(text, highlight=False, markup=False, soft_wrap=True)


def print_images(terminal: Console, dataset: str, about: Mapping[str, Any]) -> None:
    """Print how many images and which classes a data set has, and what was left out, from its description."""
    from steppe.report.formatting import images_summary

    print_text(terminal, images_summary(dataset, about))


def print_memory(terminal: Console, method: str, count: int) -> None:
    """Print how many bytes a method stores for the training images, if any."""
    from steppe.training.run import format_bytes

    if count:
        print_text(terminal, f"{method} keeps {format_bytes(count)} of past outputs")
