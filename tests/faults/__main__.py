"""The campaign: every class with its planted defects, two at a time, and the table."""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

from faults import table
from faults.command import ROOT, environment
from faults.outcome import Case, Row, Where, caught, summed

LIMIT = 2400.0  # seconds after which a class that hangs is ended


def tried(name: str, count: int, plant: str | None = None) -> tuple[list[Case], float]:
    """Run a class in a process of its own; return its cases and the processor's seconds."""
    scratch = Path(tempfile.mkdtemp(prefix=f"faults-{name}-")).resolve()
    command = [sys.executable, "-m", "faults.work", name, str(count), str(scratch), *([plant] if plant else [])]
    with tempfile.TemporaryDirectory(prefix=f"output-{name}-") as place:
        out, err = Path(place) / "out", Path(place) / "err"
        with out.open("wb") as to, err.open("wb") as errors:
            try:
                done = subprocess.run(
                    command, env=environment(Where(scratch)), stdout=to, stderr=errors, timeout=LIMIT, cwd=scratch
                )
                code, why = done.returncode, ""
            except subprocess.TimeoutExpired:
                code, why = 1, f"no end within {LIMIT:.0f} s"
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        lines = out.read_text().splitlines()
        why = why or "".join(err.read_text(errors="replace").splitlines()[-1:])
    results = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    cases = [Case(**content) for content in results if "cpu" not in content]
    if code:
        # a class that breaks off has not shown what it is there to show
        cases.append(Case(f"{name} itself", "traceback", why))
    return cases, sum(content.get("cpu", 0.0) for content in results)


def row(name: str, short: bool, command: str) -> Row:
    """Run a class, then each of its planted defects on a few cases; in the short form the first of them."""
    faults = importlib.import_module(f"faults.classes.{name}")
    began = time.monotonic()
    cases, cpu = tried(name, faults.SHORT if short else faults.FULL)
    total = summed(name, faults.TITLE, command, cases, time.monotonic() - began, cpu)
    plants = list(faults.PLANTED)[: 1 if short else None]
    planted = {plant: caught(tried(name, faults.FEW, plant)[0]) for plant in plants}
    return replace(total, planted={f"{plant}: {faults.PLANTED[plant]}": how for plant, how in planted.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description="Break steppe on purpose.")
    parser.add_argument(
        "classes", nargs="*", metavar="CLASS", help=f"{', '.join(table.ORDER)}; all if none is named"
    )
    parser.add_argument("--short", action="store_true", help="a few of each")
    parser.add_argument("--jobs", type=int, default=2, help="classes at a time")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/reliability.md")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.classes) - set(table.ORDER)):
        parser.error(f"unknown class {unknown[0]!r}; choose of {', '.join(table.ORDER)}")
    chosen, writing = options.classes or list(table.ORDER), Lock()

    def work(name: str) -> Row:
        command = ["python -m faults", name, *(["--short"] if options.short else [])]
        result = row(name, options.short, " ".join(command))
        notes = [*result.failures, *(f"not run: {text}" for text in result.missing)]
        print(table.line(result), *notes, sep="\n  ", flush=True)
        if options.write:
            with writing:
                table.keep([result], ROOT / "docs")
        return result

    began = time.monotonic()
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        rows = list(pool.map(work, chosen))
    if options.write and chosen == list(table.ORDER):
        table.keep(rows, ROOT / "docs", round(time.monotonic() - began, 1))
    return 0 if all(r.holds for r in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
