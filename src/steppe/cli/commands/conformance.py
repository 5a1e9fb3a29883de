"""The command ``steppe conformance``: check the named methods, show progress, print and write the table."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from rich.console import Console

from steppe.cli import console
from steppe.errors import InputError
from steppe.testing import CHECKS, Progress, find, summary_table
from steppe.testing import run as run_checks
from steppe.testing.context import Check
from steppe.testing.resolve import subjects_of, versions_of
from steppe.testing.result import CheckResult
from steppe.testing.subjects import Subject


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "names", type=str, nargs="*", default=[], help="methods, module:Class or file.py:Class; all if none"
    )
    parser.add_argument("--checks", type=str, nargs="+", default=[], help="checks to run; all if not given")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the results as JSON")
    parser.add_argument("--markdown", type=str, default=None, help="file that the table is written into")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda: where the checks run")


def run(options: Namespace, command: str) -> int:
    """Check the named methods, print and write the table; return 0 if nothing fails, else 1.

    Raises InputError for an unknown name or check, or a device that torch does not see.
    """
    device, markdown, terminal = options.device, options.markdown, console.console()
    if device not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}; choose one of cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' and torch sees no GPU; leave --device out")
    if markdown is not None and Path(markdown).is_dir():
        raise InputError(f"markdown is {markdown!r}, a folder; give a file")
    chosen = [find(name).name for name in (options.checks or CHECKS)]
    subjects = subjects_of(options.names)
    progress_console = console.console(stderr=True) if options.json else terminal
    with progress_console.status("starting") as status:
        progress = _progress(progress_console, status.update, len(chosen))
        results = run_checks(subjects, checks=chosen, device=device, progress=progress)
    versions = versions_of(subjects, device)
    if options.json:
        print(summary_table.as_json(results, versions, device))
    else:
        terminal.print()
        terminal.print(summary_table.terminal(results))
        for line in (*summary_table.remarks(results), summary_table.counts(results)):
            console.print_text(terminal, line)
        if device == "cuda" and torch.cuda.device_count() < 2:
            console.print_text(terminal, "checks of two processes ran on the processor: they need a GPU each")
    if markdown is not None:
        section = summary_table.markdown(results, versions, device, command)
        try:
            summary_table.write(Path(markdown), section, command)
        except OSError as error:
            raise InputError(f"cannot write {markdown}: {error.strerror}; give another file") from None
        print(f"written: {markdown}", file=sys.stderr)
    return int(any(r.status == "fail" for r in results))


def _progress(console: Console, update: Callable[[str], None], count: int) -> Progress:
    """Return a function that shows the check that runs, and a line per subject when its checks have ended."""
    done: list[CheckResult] = []

    def progress(subject: Subject, check: Check, result: CheckResult | None) -> None:
        if result is None:
            update(f"{subject.name}: {check.name} ({len(done) + 1} of {count})")
            return
        done.append(result)
        if len(done) == count:
            seconds = sum(r.seconds for r in done)
            line = f"{subject.name}: {summary_table.counts(done)}, {seconds:.1f} s"
            console.print(line, highlight=False, markup=False)
            done.clear()

    return progress
