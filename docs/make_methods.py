"""Write a page per method, and their index, from the methods' module docstrings: python docs/make_methods.py"""

import re
from pathlib import Path

import make_figures

from steppe import methods
from steppe.core import schedules
from steppe.core.method.hyperparameters import constraint_of, own_first, types_of
from steppe.methods import MethodFacts

FOLDER, RESULTS = Path(__file__).parent / "methods", Path(__file__).parent / "results"
CAPTION = (
    "Four steps on a loss of two weights, from the left. Orange points: where a gradient is taken. Green: the "
    "path of the weights. Drawn by running the method, with larger perturbations than usual."
)
TITLES = {
    "Paper": "Paper",
    "Code": "Public code",
    "Cost": "Cost per step",
    "Limits": "Special cases",
    "Agrees": "Agreement with the authors' program",
    "Outputs": "Outputs that it compares",
    "Differs": "Differences from the paper and its code",
    "Start": "Where to start",
}
PROTOCOL = (
    " The number is the largest relative difference of a weight tensor after 10 steps in float64, from the same "
    "initial weights, batches and settings: three linear layers, BatchNorm and LayerNorm, SGD with momentum and "
    "weight decay if nothing else is said."
)


def sections(card: str) -> tuple[str, str, dict[str, str]]:
    """Return a card's summary, its equations, and its sections by name."""
    names = "|".join(TITLES)
    parts = re.split(rf"^({names}) +", card, flags=re.MULTILINE)
    head, *rest = parts
    equations = "\n".join(line[4:] for line in head.splitlines() if line.startswith("    "))
    summary = "\n".join(line for line in head.splitlines() if not line.startswith("    ")).strip()
    return re.sub(r"\n{2,}", "\n\n", summary), equations, dict(zip(rest[::2], rest[1::2], strict=True))


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
    """Return a table of the method's settings, their defaults and what they are."""
    method = methods.make(name)
    rows = []
    for f in own_first(method):
        value, constraint = getattr(method.resolved, f.name), constraint_of(f)
        text = schedules.format_schedule(value) if isinstance(value, schedules.Schedule) else f"{value}"
        limits = constraint.range(int in types_of(type(method))[f.name])
        cells = [f"`{f.name}`", f"`{text}`", constraint.help, limits]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    head = ["| setting | default | what it is | values |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else "It has no settings."


def trials_of(name: str) -> list[str]:
    """Return the pages of results with a row of a method, with settings or as a control too."""
    row = re.compile(rf"^\| `?{name}(?::[^`| ]*)?`?(?: \(control\))? \|", re.MULTILINE)
    return [p.name for p in sorted(RESULTS.glob("*.md")) if row.search(p.read_text())]


def status(name: str) -> str:
    """Return how far a method has been tested here, with the figures of its trials."""
    checked = "It matches its equation to 1e-9 and passes all [conformance checks](../conformance.md)."
    trials = [RESULTS / name for name in trials_of(name)]
    if not trials:
        return f"{checked} No longer training has been done here yet."
    links = ", ".join(f"[{p.read_text().splitlines()[0].lstrip('# ')}](../results/{p.name})" for p in trials)
    with_curves = [p for p in trials if p.with_suffix(".png").exists()]
    figures = "".join(f"\n\n![Training curves](../results/{p.stem}.png)" for p in with_curves)
    ledger = "[The ledger](../ledger.md) compares the papers' numbers with ours."
    return f"{checked} Results: {links}. {ledger}{figures}"


def page(name: str) -> str:
    """Return a method's page."""
    summary, equations, parts = sections(methods.card(name))
    row = methods.row(name)
    blocks = [f"# {name}", summary, f"```text\n{equations}\n```"]
    if make_figures.figure(name):
        blocks += [f"![Steps of {name} on a plane of two weights]({name}.svg)", CAPTION]
    first = [k for k in parts if k not in ("Differs", "Start")]
    blocks += [f"**{TITLES[k]}.** {paragraph(parts[k])}{'.' + PROTOCOL if k == 'Agrees' else ''}" for k in first]
    controls = ", ".join(f"[{c}]({c}.md)" for c in methods.make(name).controls) or "plain training alone"
    blocks += [
        f"**Controls.** {controls}",
        f"**State between steps.** {'none' if row.keeps == '-' else row.keeps}",
        f"**Status.** {status(name)}",
    ]
    blocks += ["## Settings", settings(name)]
    blocks += [f"## {TITLES[k]}\n\n{paragraph(v)}" for k, v in parts.items() if k in ("Differs", "Start")]
    blocks += [
        "## Use",
        f'```python\nimport steppe\n\nmethod = steppe.make("{name}")  # then method.bind(model, optimizer)\n```',
        f"```sh\nsteppe compare --methods {' '.join(compared_with(name))}\nsteppe conformance {name}\n```",
        "[All methods](README.md)",
    ]
    return "\n\n".join(blocks) + "\n"


def compared_with(name: str) -> list[str]:
    """Return the methods of a fair comparison: plain training, the method's controls, the method."""
    return list(dict.fromkeys(["plain", *methods.make(name).controls, name]))


def index(rows: list[MethodFacts]) -> str:
    """Return the list of all methods."""
    cells = [(f"[{r.name}]({r.name}.md)", r.cost, r.keeps, r.source, r.status, r.summary) for r in rows]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join(
        [
            "# Methods",
            "",
            "Passes: forward / backward / updates per step, at most. State: what a method stores between steps.",
            "Status *checked*: it matches its equation; *tried*: there are also [results](../choose.md) here.",
            "[The map](../family.md) says what each method adds to the one before.",
            "",
            "| method | passes | state | source | status | what it does |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def pages() -> dict[str, str]:
    """Return every page by its file name."""
    names = methods.names()
    return {"README.md": index([methods.row(n) for n in names]), **{f"{n}.md": page(n) for n in names}}


def figures() -> dict[str, str]:
    """Return every picture by its file name."""
    pictures = {f"{name}.svg": make_figures.figure(name) for name in methods.names()}
    return {name: picture for name, picture in pictures.items() if picture}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for file, text in (pages() | figures()).items():
        (FOLDER / file).write_text(text)
