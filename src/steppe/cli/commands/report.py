"""``steppe report``: write a comparison's report again, or serve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_text
from steppe.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=str, help="folder of a comparison")
    parser.add_argument(
        "--live", action=ActionYesNo, default=False, help="serve a page on this machine that follows the runs"
    )
    parser.add_argument("--port", type=int, default=0, help="with --live: port of the page; 0: any free one")


def run(options: Namespace, command: str) -> int:
    """Write the report and print its table, or serve the live page until Ctrl-C."""
    if options.live:
        from steppe.report.comparison import live

        text = "live report: {} (Ctrl-C ends it)"
        live.serve(Path(options.folder), options.port, lambda address: print(text.format(address), flush=True))
        return 0
    if options.port:
        raise InputError(f"port is {options.port} and there is nothing to serve; add --live")
    print_report(Path(options.folder), console())
    return 0


def print_report(folder: Path, terminal: Console) -> None:
    """Write a comparison's report, and print its tables and conclusions."""
    from steppe import records
    from steppe.records.suite import SUITE
    from steppe.report.comparison import classes, conclusions, deployables, page, summary, tables

    if (folder / SUITE).exists():
        _print_suite(folder, terminal)
        return
    path = page.write(folder)
    comparison = records.load(folder)
    rows = summary.rows(comparison)
    outputs = deployables.terminal(deployables.parts(comparison))
    for table in (tables.terminal(rows), *outputs, *classes.terminal(classes.tables(comparison))):
        terminal.print(table)
    hint = conclusions.missing_controls(comparison)
    for text in filter(None, (conclusions.sentence(rows), *conclusions.remarks(rows), hint)):
        terminal.print(f"\n{text}", highlight=False, markup=False)
    print_text(terminal, f"\nreport: {path}")


def _print_suite(folder: Path, terminal: Console) -> None:
    """Write a suite's page, and print its league tables and conclusions."""
    from steppe.records.suite import load_suite
    from steppe.report.suite import league, page, tables

    path, suite = page.write(folder), load_suite(folder)
    leagues = page.leagues_of(suite)
    for table in tables.terminal(leagues):
        terminal.print(table)
    for view, standings in leagues.items():
        text = f"{league.VIEWS[view]}: {' '.join(league.lede(standings))}"
        terminal.print(f"\n{text}", highlight=False, markup=False)
    print_text(terminal, "\n".join(["", *tables.notes(suite), f"report: {path}"]))
