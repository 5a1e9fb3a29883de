"""The table of results: stored as plain data, written as a page."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from faults.outcome import Row

DATA, PAGE = "reliability.json", "reliability.md"
HEAD = """# Reliability

The fault campaign kills processes, takes resources away, damages files and feeds hostile input, and compares what
follows with an undisturbed run. It also generates what people have (image folders, pixels, batches, losses,
environments), where the right result is known. Every class is also run with defects planted in the library, one at
a time, and must catch each of them.

- **Lost**: work is gone, a wrong state was used, or bad input was accepted.
- **Traceback**: the output is something other than the documented line.
- **Outside**: something was written outside the allowed folders, or a program was started.

"""
COLUMNS = (
    "class", "form", "cases", "lost", "tracebacks", "outside", "seconds", "processor seconds",
    "planted defects caught",
)  # fmt: skip


def line(row: Row) -> str:
    caught = sum(text.startswith("caught") for text in row.planted.values())
    counts = f"{row.cases} cases, lost {row.lost}, tracebacks {row.tracebacks}, outside {row.outside}"
    spent = f"{row.seconds:.0f} s, {row.cpu:.0f} s of processor"
    return f"{row.name}: {counts}, {spent}, planted defects caught {caught} of {len(row.planted)}"


def page(rows: Sequence[Row], together: float | None = None) -> str:
    """Return the page of these rows, and of the seconds that all of them took in one command."""
    lines = [_cells(COLUMNS), _cells(["---"] * len(COLUMNS))]
    for r in rows:
        caught = sum(text.startswith("caught") for text in r.planted.values())
        counts = (r.cases, r.lost, r.tracebacks, r.outside, f"{r.seconds:.0f}", f"{r.cpu:.0f}")
        form = "short" if "--short" in r.command else "full"
        lines.append(_cells([r.title, form, *map(str, counts), f"{caught} of {len(r.planted)}"]))
    lines += ["", "How each planted defect was caught:", "", _cells(("defect", "result")), _cells(["---"] * 2)]
    lines += [_cells((defect, result)) for r in rows for defect, result in r.planted.items()]
    lines += ["", "What did not hold:", ""] if any(r.failures for r in rows) else []
    lines += [f"- {text}" for r in rows for text in r.failures]
    lines += ["", "Not run:", ""] if any(r.missing for r in rows) else []
    lines += [f"- {text}" for r in rows for text in r.missing]
    missing = [name for name in ORDER if name not in {r.name for r in rows}]
    if missing:
        command = f"`python -m faults {' '.join(missing)} --write`"
        lines += ["", f"Not measured yet: {', '.join(missing)}; {command} does."]
    commands = "\n".join(dict.fromkeys(r.command for r in rows))
    tail = f"\nMeasured with these commands, `src` and `tests` on PYTHONPATH:\n\n```sh\n{commands}\n```\n\n{AFTER}"
    whole = f"All classes with their planted defects, in one command: {(together or 0) / 60:.0f} minutes.\n"
    return HEAD + "\n".join(lines) + "\n" + tail + (whole if together else "")


AFTER = """`make faults` runs all, `make faults-short` a few cases of each class and its first planted defect.
Seconds are those of the class without its planted defects, on two cores; other work on the machine makes them
longer, but not the processor's seconds.
"""


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def read(docs: Path) -> tuple[list[Row], float | None]:
    """Return the rows that are kept, and the seconds of all in one command if that was done."""
    path = docs / DATA
    data = json.loads(path.read_text()) if path.exists() else {"rows": [], "together": None}
    return [Row.of(row) for row in data["rows"]], data["together"]


def keep(rows: Sequence[Row], docs: Path, together: float | None = None) -> None:
    """Put rows in the place of those of the same name, and write the page anew."""
    by_name = {r.name: r for r in read(docs)[0]} | {r.name: r for r in rows}
    order = [by_name[name] for name in ORDER if name in by_name]
    content = {"together": together, "rows": [dataclasses.asdict(row) for row in order]}
    (docs / DATA).write_text(json.dumps(content, indent=1) + "\n")
    (docs / PAGE).write_text(page(order, together))


ORDER = ("kills", "resources", "damage", "fuzz", "attacks", "numerical", "world")
