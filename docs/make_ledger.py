"""Write docs/ledger.md from the packed records and the recipes: python docs/make_ledger.py"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from steppe import methods, models
from steppe.config import recipes
from steppe.config.recipes import Recipe
from steppe.models.multi.shared_trunk import count_flops
from steppe.report.statistics import Difference, mean_std, paired_difference

FOLDER = Path(__file__).parent / "records"
PAGE = Path(__file__).parent / "ledger.md"
NONE = "\N{EN DASH}"
RULE = """
**The rule.** What is compared is a row's gain over plain training in the same column of the table (over DML with
as many networks where the table has no plain row), in percentage points, because the level depends on the images
and the length of training. Ours is the mean over seeds of differences paired by seed, with Student's 95 %
interval.

- *agrees*: the published gain lies in our interval (full protocol), or our interval excludes 0 on the side of the
  published gain (scaled protocol, which can confirm a direction and no size).
- *differs*: the published gain lies outside our interval (full), or our interval excludes 0 on the other side
  (scaled).
- *undecided*: our interval contains 0, or there is one seed.
- *not run*: with the command, and an estimate of its arithmetic in EFLOP (10^18 operations; a GPU that sustains
  100 TFLOP/s makes 0.36 in an hour): 6 x multiply-adds x images x epochs x backward passes per image.

Several intervals are looked at, each on its own; a few of many may exclude 0 by chance.
"""


@functools.cache
def index() -> dict[str, Any]:
    """Return what is said about the records."""
    held: dict[str, Any] = yaml.safe_load((FOLDER / "index.yaml").read_text())
    return held


@functools.cache
def runs(name: str) -> list[dict[str, Any]]:
    """Return the runs of a packed comparison."""
    held: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["runs"]
    return held


def accuracies(name: str, method: str, which: str = "last") -> dict[int, float]:
    """Return the accuracy in percent of each seed's run of a method; 'OTHER/METHOD' is one of other records."""
    other, _, own = method.rpartition("/")
    return {r["seed"]: r[which] for r in runs(other or name) if r["method"] == own and r.get(which) is not None}


def gain(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Return a minus b over the seeds that both have."""
    seeds = sorted(a.keys() & b.keys())
    return paired_difference([a[s] for s in seeds], [b[s] for s in seeds]) if seeds else None


def verdict(published: float, ours: Difference | None, *, full: bool) -> str:
    """Judge a gain over plain training by the ledger's rule."""
    if ours is None:
        return "not run"
    if ours.low is None or ours.high is None:
        return "undecided"
    if full:
        return "agrees" if ours.low <= published <= ours.high else "differs"
    if not ours.significant:
        return "undecided"
    return "agrees" if ours.mean * published > 0 else "differs"


def spread(values: Mapping[int, float]) -> str:
    """Return mean and deviation as text."""
    if not values:
        return NONE
    mean, std = mean_std(list(values.values()))
    return f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "") + f" (n={len(values)})"


def interval(d: Difference | None) -> str:
    """Return a difference as text."""
    if d is None:
        return NONE
    return f"{d.mean:+.2f}" + (f" [{d.low:.2f}, {d.high:.2f}]" if d.low is not None and d.high is not None else "")


@functools.cache
def multiply_adds(model: str, classes: int) -> float:
    """Return a network's multiply-adds per image of its data."""
    if "/" in model:
        return float(index()["macs"][model]) * 1e9
    with torch.device("meta"):
        net = models.build(model, classes=classes, channels=3, size=32)
        return count_flops(net, torch.zeros(1, 3, 32, 32))[0] / 2


def cost(held: Recipe, data: str, model: str, row: str) -> float:
    """Return the estimated arithmetic of a run, in EFLOP."""
    values = held.choose([row], {"dataset": f"{data}:PATH", "model": model}).values
    method = methods.parse(str(values["method"]))
    backward = method.cost[1] if method.cost else 1
    images = index()["images"][data] * float(values.get("data.legacy_share") or 1)
    batches = getattr(method, "batches", 1)  # a step of two batches counts each image of it once
    classes = 100 if data == "cifar100" else 10
    return 6 * multiply_adds(model, classes) * images * values["epochs"] * backward / batches / 1e18


@functools.cache
def tables() -> list[tuple[Recipe, list[str]]]:
    """Return the recipes that have printed accuracies, with their lines."""
    held = [recipes.load(name) for name in recipes.names()]
    return [(one, list(lines(one))) for one in held if {"accuracy", "top-1"} & {*one.published.columns}]


def standing_for(recipe: str, data: str, model: str, row: str) -> tuple[str, dict[str, Any]] | None:
    """Return the records that have this row of a table, and what is said about them."""
    for name, about in index()["records"].items():
        if (about["recipe"], about["data"], about["model"]) == (recipe, data, model) and row in about[
            "rows"
        ].values():
            return name, about
    return None


def lines(held: Recipe) -> Iterator[str]:
    """Yield the ledger's lines of one table."""
    rows = held.published.rows
    place = next(i for i, c in enumerate(held.published.columns) if c in ("accuracy", "top-1"))
    printed = {r[:3]: r[place] for r in rows}
    official = index()["official"].get(held.name, {})
    yield "| data | network | row | paper | gain | authors' code | ours | gain | minus control | verdict |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---|"
    for data, model, row, *numbers in rows:
        value = numbers[place - 3]
        deviation = numbers[place - 2] if "deviation" in held.published.columns else None
        known = standing_for(held.name, data, model, row)
        base = "plain" if (data, model, "plain") in printed else f"dml-{row.rpartition('-')[2]}"
        published = None if row == base else value - printed[data, model, base]
        ours = control = None
        said, shown = "not run", NONE
        if known:
            name, about = known
            labels = {v: k for k, v in about["rows"].items()}
            mine = accuracies(name, labels[row])
            shown = spread(mine)
            if row != base:
                ours = gain(mine, accuracies(name, labels[base]))
                control = gain(mine, accuracies(name, about["control"]))
            full = about["protocol"] == "full"
            said = "the baseline" if published is None else verdict(published, ours, full=full)
            said += "" if full else ", scaled"
        code = official.get(f"{data} {model}", {}).get(row)
        cells = [
            data, model, row, f"{value:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else ""),
            NONE if published is None else f"{published:+.2f}", NONE if code is None else f"{code:.2f}", shown,
            interval(ours), interval(control),
            said if known else f"not run: {cost(held, data, model, row):.2g} EFLOP a seed",
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def table(held: Recipe, found: list[str]) -> str:
    """Return one table's part of the page."""
    about = [a | {"name": n} for n, a in index()["records"].items() if a["recipe"] == held.name]
    out = [f"### {held.name}", "", f"{held.source}: {held.published.quantity}.", ""]
    path = {"cifar10": "cifar10:PATH", "cifar100": "cifar100:PATH", "folder": "folder:IMAGENET"}[held.data[0]]
    out += ["```sh", f"steppe train recipe={held.name}:NETWORK:ROW --dataset {path} --seed SEED", "```", ""]
    for a in about:
        out.append(f"Ours: {a['protocol']} (`records/{a['name']}.json`); control: {a['control']}.\n")
    if note := index()["official"].get(held.name, {}).get("note"):
        out.append(f"Authors' code: {note}.\n")
    return "\n".join([*out, *found, ""])


def answer(question: str, name: str, pairs: list[tuple[str, str]]) -> str:
    """Return a question with the differences that answer it."""
    out = [f"**{question}**", "", "| difference | points | seeds |", "|---|---:|---:|"]
    for a, b in pairs:
        d = gain(accuracies(name, a), accuracies(name, b))
        out.append(f"| `{a}` minus `{b}` | {interval(d)} | {d.n if d else 0} |")
    return "\n".join([*out, ""])


def questions() -> str:
    """Return the questions that the ledger must answer, with what is known."""
    found = []
    for one in index().get("questions", []):
        pairs = [(a, b) for a, b in one.get("pairs", ())]
        text = answer(one["ask"], one["records"], pairs) if pairs else f"**{one['ask']}**\n"
        found.append(f"{text}\n{one['read'].strip()}\n")
    return "\n".join(found)


def page() -> str:
    """Return the whole ledger."""
    judged = [line for _, found in tables() for line in found[2:]]
    count = {
        word: sum(f"| {word}" in line for line in judged)
        for word in ("agrees", "differs", "undecided", "the baseline", "not run")
    }
    head = (
        "# The ledger\n\nWhat the papers print, what we measured, and what its control says, cell by cell. Made "
        "from `docs/records` by `python docs/make_ledger.py`; by hand is `records/index.yaml` alone.\n"
    )
    tally = f"{len(judged)} cells: " + ", ".join(f"{n} {word}" for word, n in count.items()) + ".\n"
    rest = ["| paper | where | what | status | command |", "|---|---|---|---|---|"]
    rest += ["| " + " | ".join([*row[:-1], f"`{row[-1]}`"]) + " |" for row in index()["elsewhere"]]
    parts = [head, RULE, tally, "## Questions\n", questions(), "## Tables\n"]
    parts += [table(held, found) for held, found in tables()]
    return "\n".join([*parts, "## Other tables and figures\n", *rest, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
