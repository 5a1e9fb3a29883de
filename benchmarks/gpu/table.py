"""The results as a section of a document, between two markers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"
_COLUMNS = {
    "by hand": "ms", "ours": "ms", "pytorch_optimizer": "ms", "by hand, graph": "ms", "graph": "ms",
    "compile": "ms", "reduce-overhead": "ms",
    "launches": "", "graph launches": "", "operations": "", "reads": "", "memory": "MiB",
}  # fmt: skip
Row = Mapping[str, Any]


def render(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Return the section: what was measured where, the steps, the data and the runs, and what failed."""
    lines = [f"`{about['command']}`", "", _machine(about), ""]
    lines += [f"Checks: {r['text']}.\n" for r in rows if r["group"] == "checks"]
    steps = [r for r in rows if "column" in r and "value" in r]
    if steps:
        lines += [
            "A step, in ms; `over` is ours over the loop by hand. Launches, reads of a value from the GPU by the "
            "host, and the peak memory are those of ours.", "",
        ]  # fmt: skip
        lines += _steps(steps)
    others = [r for r in rows if "unit" in r]
    if others:
        lines += ["", "| what | value | |", "|---|--:|---|"]
        lines += [f"| {r['row']} | {_number(r['value'])} {r['unit']} | {r.get('note', '')} |" for r in others]
    failed = [r for r in rows if "error" in r]
    if failed:
        lines += ["", "Not measured, and why:", ""]
        lines += [f"- {r['row']}, {r.get('column', r['group'])}: {r['error']}" for r in failed]
    return "\n".join(lines)


def line(row: Row) -> str:
    """Return a result as a line of progress."""
    name = f"{row['row']}, {row['column']}" if "column" in row else row["row"]
    if "error" in row:
        return f"{name}: {row['error']}"
    unit = row.get("unit", _COLUMNS.get(row.get("column", ""), ""))
    return f"{name}: {_number(row['value'])} {unit}"


def write(path: Path, section: str) -> None:
    """Write the section between the markers of a file; raises ValueError if it has none."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no {BEGIN} and {END}; add both lines where the table is to be")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{after}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _machine(about: Mapping[str, Any]) -> str:
    parts = [about["device"], f"torch {about['torch']}", f"Python {about['python']}", about["date"]]
    if "cuda" in about:
        parts.insert(2, f"CUDA {about['cuda']}")
    without = f" Not installed: {', '.join(about['missing'])}." if about.get("missing") else ""
    return f"Measured on {', '.join(parts)}.{without}"


def _steps(steps: Sequence[Row]) -> list[str]:
    values: dict[str, dict[str, float]] = {}
    for r in steps:
        values.setdefault(r["row"], {})[r["column"]] = r["value"]
    columns = [c for c in _COLUMNS if any(c in v for v in values.values())]
    where = columns.index("ours") + 1 if "ours" in columns and "by hand" in columns else None
    head = [*columns[:where], "over", *columns[where:]] if where else columns
    lines = [f"| step | {' | '.join(head)} |", f"|---|{'--:|' * len(head)}"]
    for name, row in values.items():
        cells = [_number(row[c]) if c in row else "" for c in columns]
        if where:
            both = "ours" in row and "by hand" in row
            cells.insert(where, f"{row['ours'] / row['by hand']:.2f}" if both else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
