"""Results as a table: for the terminal, as Markdown, as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steppe.testing.checks import CHECKS
from steppe.testing.result import CheckResult

MAX_COLUMNS = 10
_SIGN = {"pass": "ok", "fail": "FAIL", "n/a": "n/a"}
_STYLE = {"pass": "green", "fail": "bold red", "n/a": "dim"}


def terminal(results: Sequence[CheckResult]) -> Group:
    """Return tables with a row per check and a column per subject."""
    tables = []
    for subjects, rows in _blocks(results):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("check")
        for subject in subjects:
            table.add_column(subject, justify="center", overflow="fold")
        for check, row in rows.items():
            table.add_row(check, *(Text(_SIGN[r.status], _STYLE[r.status]) for r in row))
        tables.append(Padding(table, (0, 0, 1, 0)))
    return Group(*tables)


def remarks(results: Sequence[CheckResult]) -> list[str]:
    """Return a line per failure and per reason why a check does not apply."""
    failed = [f"FAIL: {r.check}: {r.why} ({r.subject})" for r in results if r.status == "fail"]
    return failed + [f"n/a: {check}: {why} ({who})" for check, why, who in _reasons(results, "n/a")]


def counts(results: Sequence[CheckResult]) -> str:
    """Return how many checks passed, failed and do not apply, in words."""
    count = {status: sum(r.status == status for r in results) for status in _SIGN}
    return f"{count['pass']} passed, {count['fail']} failed, {count['n/a']} not applicable"


def as_json(results: Sequence[CheckResult], versions: Mapping[str, str], device: str) -> str:
    """Return everything as JSON."""
    rows = [{**vars(r), "seconds": round(r.seconds, 3)} for r in results]
    return json.dumps({"versions": dict(versions), "device": device, "results": rows}, indent=1)


def markdown(results: Sequence[CheckResult], versions: Mapping[str, str], device: str, command: str) -> str:
    """Return a section of a document: versions, table, and the reason for every sign that is not 'ok'."""
    where = "on the processor" if device == "cpu" else f"half precision, overflow and compilation on {device}"
    lines = [
        f"`{command}`",
        "",
        f"{', '.join(f'{k} {v}' for k, v in versions.items())}; {where}. {counts(results)}.",
    ]
    for subjects, rows in _blocks(results):
        lines += ["", "| check | " + " | ".join(subjects) + " |", "|---|" + ":-:|" * len(subjects)]
        for check, row in rows.items():
            signs = ["**FAIL**" if r.status == "fail" else _SIGN[r.status] for r in row]
            lines.append(f"| {check} | " + " | ".join(signs) + " |")
    failures = _reasons(results, "fail")
    if failures:
        lines += ["", "What failed:", ""]
        lines += [f"- **{check}** ({who}): {why}. {CHECKS[check].consequence}" for check, why, who in failures]
    for status, title in (("n/a", "Not applicable:"), ("pass", "Passed, with a remark:")):
        reasons = _reasons(results, status)
        if reasons:
            lines += ["", title, "", *(f"- {check} ({who}): {why}." for check, why, who in reasons)]
    return "\n".join(lines) + "\n"


def write(path: Path, section: str, command: str) -> None:
    """Write a section into a document, in the place of the one that the same command wrote before.

    The rest of the document is not changed; a new document begins with the claims of the checks.
    """
    begin, end = f"<!-- made by: {command} -->\n", "<!-- end -->\n"
    claims = "\n".join(f"- **{name}**: {check.claim}" for name, check in CHECKS.items())
    text = path.read_text() if path.exists() else f"# Conformance\n\n{claims}\n"
    section = begin + section + end
    if begin in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = text.rstrip("\n") + "\n\n" + section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _blocks(results: Sequence[CheckResult]) -> list[tuple[list[str], dict[str, list[CheckResult]]]]:
    """Return subjects, and their results by check, for as many subjects at a time as fit into one table."""
    names = list(dict.fromkeys(r.subject for r in results))
    blocks = []
    for i in range(0, len(names), MAX_COLUMNS):
        subjects = names[i : i + MAX_COLUMNS]
        rows: dict[str, list[CheckResult]] = {}
        for r in results:
            if r.subject in subjects:
                rows.setdefault(r.check, []).append(r)
        blocks.append((subjects, rows))
    return blocks


def _reasons(results: Sequence[CheckResult], status: str) -> list[tuple[str, str, str]]:
    """Return (check, reason, subjects) with the subjects that share a reason together."""
    shared: dict[tuple[str, str], list[str]] = {}
    for r in results:
        if r.status == status and r.why:
            shared.setdefault((r.check, r.why), []).append(r.subject)
    order = list(CHECKS)
    ranked = sorted(shared.items(), key=lambda item: order.index(item[0][0]))
    return [(check, why, ", ".join(who)) for (check, why), who in ranked]
