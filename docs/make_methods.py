"""Write a page per method, and their index, from the methods' cards: python docs/make_methods.py"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import make_figures

from steppe import methods
from steppe.core import schedules
from steppe.methods import MethodFacts

FOLDER, RESULTS = Path(__file__).parent / "methods", Path(__file__).parent / "results"
CAPTION = (
    "Four steps on a loss of two weights, from the left: orange, where a gradient is taken; green, the way of the "
    "weights. Made with the method itself, at larger distances than usual."
)
TITLES = {
    "Paper": "Paper",
    "Code": "Public code",
    "Cost": "Cost per step",
    "Limits": "At its limits",
    "Differs": "What is different here",
    "Start": "Where to start",
}


def sections(card: str) -> tuple[str, str, dict[str, str]]:
    """Return what a card says before its first section, its equations, and its sections by name."""
    names = "|".join(TITLES)
    parts = re.split(rf"^({names}) +", card, flags=re.MULTILINE)
    head, *rest = parts
    equations = "\n".join(line[4:] for line in head.splitlines() if line.startswith("    "))
    words = "\n".join(line for line in head.splitlines() if not line.startswith("    ")).strip()
    return re.sub(r"\n{2,}", "\n\n", words), equations, dict(zip(rest[::2], rest[1::2], strict=True))


def paragraph(text: str) -> str:
    """Return a section's lines as Markdown, numbered points as a list."""
    lines = [line.strip() for line in text.strip().splitlines()]
    joined = " ".join(lines)
    points = re.split(r"(?:^|(?<=[.;:]) )\d\. ", joined)
    if len(points) == 1:
        return joined
    head = [points[0].strip()] if points[0].strip() else []
    return "\n".join([*head, *(f"{i}. {point.strip()}" for i, point in enumerate(points[1:], 1))])


def settings(name: str) -> str:
    """Return a table of the method's settings and their defaults."""
    method = methods.make(name)
    rows = []
    for f in dataclasses.fields(method):
        value = getattr(method, f.name)
        if isinstance(value, float | int | str | bool) or value is None or isinstance(value, schedules.Schedule):
            shown = schedules.format_schedule(value) if isinstance(value, schedules.Schedule) else f"{value}"
            rows.append(f"| `{f.name}` | `{shown}` |")
    return "\n".join(["| setting | default |", "|---|---|", *rows]) if rows else "It has no settings."


def status(name: str) -> str:
    """Return what is known of a method beyond its equation, with the figures of its trials."""
    held = "Its equation holds to 1e-9, and all that must hold for any method ([conformance](../conformance.md))."
    trials = [
        p for p in sorted(RESULTS.glob("*.md")) if re.search(rf"^\| {name}(?::[^ ]*)? \|", p.read_text(), re.M)
    ]
    if not trials:
        return f"{held} It has not been trained at length here yet."
    links = ", ".join(f"[{p.read_text().splitlines()[0].lstrip('# ')}](../results/{p.name})" for p in trials)
    drawn = [p for p in trials if p.with_suffix(".png").exists()]
    figures = "".join(f"\n\n![Training curves](../results/{p.stem}.png)" for p in drawn)
    beside = "[The ledger](../ledger.md) sets papers' numbers beside ours."
    return f"{held} What training with it gave: {links}. {beside}{figures}"


def page(name: str) -> str:
    """Return a method's page."""
    words, equations, found = sections(methods.card(name))
    row = methods.row(name)
    kept = "nothing" if row.keeps == "-" else row.keeps
    blocks = [f"# {name}", words, f"```text\n{equations}\n```"]
    if make_figures.figure(name):
        blocks += [f"![Steps of {name} on a plane of two weights]({name}.svg)", CAPTION]
    first = [k for k in found if k not in ("Differs", "Start")]
    blocks += [f"**{TITLES[k]}.** {paragraph(found[k])}" for k in first]
    controls = ", ".join(f"[{c}]({c}.md)" for c in methods.make(name).controls) or "plain training alone"
    blocks += [f"**Controls.** {controls}", f"**Kept from step to step.** {kept}", f"**Status.** {status(name)}"]
    blocks += ["## Settings", settings(name)]
    blocks += [f"## {TITLES[k]}\n\n{paragraph(v)}" for k, v in found.items() if k in ("Differs", "Start")]
    blocks += [
        "## Use",
        f'```python\nimport steppe\n\nmethod = steppe.make("{name}")  # then method.bind(model, optimizer)\n```',
        f"```sh\nsteppe compare --methods {' '.join(beside(name))}\nsteppe conformance {name}\n```",
        "[All methods](README.md)",
    ]
    return "\n\n".join(blocks) + "\n"


def beside(name: str) -> list[str]:
    """Return the methods of a comparison with this one: plain training, its controls, itself."""
    return list(dict.fromkeys(["plain", *methods.make(name).controls, name]))


def index(rows: list[MethodFacts]) -> str:
    """Return the list of all methods."""
    cells = [(f"[{r.name}]({r.name}.md)", r.cost, r.keeps, r.source, r.status, r.summary) for r in rows]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join(
        [
            "# Methods",
            "",
            "Passes: forward / backward / updates per step, at most; tried: see [results](../choose.md).",
            "[The map](../family.md) says what each adds to the one before.",
            "",
            "| method | passes | keeps | source | status | what it does |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def pages() -> dict[str, str]:
    """Return every file by its name."""
    names = methods.names()
    return {"README.md": index([methods.row(n) for n in names]), **{f"{n}.md": page(n) for n in names}}


def figures() -> dict[str, str]:
    """Return every picture by its name."""
    drawn = {f"{name}.svg": make_figures.figure(name) for name in methods.names()}
    return {name: picture for name, picture in drawn.items() if picture}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for file, text in (pages() | figures()).items():
        (FOLDER / file).write_text(text)
