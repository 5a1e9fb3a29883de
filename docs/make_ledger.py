"""Write docs/ledger.md and docs/results/reproduction.md from the packed records and the recipes.

    python docs/make_ledger.py [FOLDER ...]

A FOLDER is what `steppe reproduce` wrote; its tables are packed into docs/records first.
"""

import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pack_records
import yaml

from steppe.config import recipes
from steppe.config.recipes import Recipe
from steppe.experiments.reproduction import operations
from steppe.report.statistics import Difference, mean_std, paired_difference

FOLDER = Path(__file__).parent / "records"
PAGE = Path(__file__).parent / "ledger.md"
PERFORMANCE = Path(__file__).parent / "performance.md"
RESULTS = Path(__file__).parent / "results" / "reproduction.md"
NONE = "\N{EN DASH}"
RULE = """
**The rule.** We compare gains, because accuracies depend on the images and on the length of training. A row's
gain is its difference to plain training in the same column of the table, in percentage points. If the table has no
plain row, the reference is DML with as many networks. Our gain is the mean over seeds of differences paired by
seed, with Student's 95 % interval.

With a *full* protocol our runs train as the paper's do. With a *scaled* protocol they have fewer images or epochs;
this can confirm the sign of a gain, but not its size.

- *agrees*: full protocol: the published gain lies in our interval. Scaled: our interval excludes 0 and has the
  sign of the published gain.
- *differs*: full protocol: the published gain lies outside our interval. Scaled: our interval excludes 0 and has
  the other sign.
- *undecided*: our interval contains 0, or there is only one seed.
- *not run*: with the command and the estimated compute of one seed, 6 x multiply-adds x images x epochs x backward
  passes per image. The unit is EFLOP (10^18 operations); a GPU that sustains 100 TFLOP/s does 0.36 EFLOP per hour.

The intervals are not adjusted for multiple comparisons: a few of many may exclude 0 by chance.
"""


@functools.cache
def index() -> dict[str, Any]:
    """Return records/index.yaml, with the records that name their table themselves; full protocols come first."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / "index.yaml").read_text())
    every = content["records"] | reproduced()
    content["records"] = dict(sorted(every.items(), key=lambda entry: not is_full(entry[1])))
    return content


def is_full(about: Mapping[str, Any]) -> bool:
    """Return whether these records are of runs that train as the paper's do."""
    return str(about["protocol"]).startswith("full")


@functools.cache
def reproduced() -> dict[str, dict[str, Any]]:
    """Return the descriptions of the tables that `steppe reproduce` trained, by the name of their records."""
    result = {}
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text())
        if "table" in content:
            rows = dict.fromkeys(run["method"] for run in content["runs"])
            result[path.stem] = content["table"] | {"rows": {row: row for row in rows}}
    return result


@functools.cache
def runs(name: str) -> list[dict[str, Any]]:
    """Return the runs of a packed comparison."""
    content: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["runs"]
    return content


def accuracies(name: str, method: str, which: str = "last") -> dict[int, float]:
    """Return a method's accuracy in percent by seed; 'OTHER/METHOD' is a method of other records than ``name``."""
    other, _, label = method.rpartition("/")
    return {r["seed"]: r[which] for r in runs(other or name) if r["method"] == label and r.get(which) is not None}


def gain(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Return a minus b over the seeds that both have."""
    seeds = sorted(a.keys() & b.keys())
    return paired_difference([a[s] for s in seeds], [b[s] for s in seeds]) if seeds else None


def verdict(published: float, ours: Difference | None, *, full: bool) -> str:
    """Return the verdict of the ledger's rule on a published gain."""
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
    """Return mean, standard deviation and number of values as text."""
    if not values:
        return NONE
    mean, std = mean_std(list(values.values()))
    return f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "") + f" (n={len(values)})"


def interval(d: Difference | None) -> str:
    """Return a difference and its interval as text."""
    if d is None:
        return NONE
    return f"{d.mean:+.2f}" + (f" [{d.low:.2f}, {d.high:.2f}]" if d.low is not None and d.high is not None else "")


def cost(recipe: Recipe, data: str, model: str, row: str) -> float:
    """Return the estimated compute of a run, in EFLOP."""
    run = recipe.choose([row], {"dataset": f"{data}:PATH", "model": model}).run()
    return operations(run, data) / 1e18


@functools.cache
def tables() -> list[tuple[Recipe, list[str]]]:
    """Return the recipes that have printed accuracies, each with the lines of its table."""
    every = [recipes.load(name) for name in recipes.names()]
    return [(one, list(lines(one))) for one in every if {"accuracy", "top-1"} & {*one.published.columns}]


def value_column(recipe: Recipe) -> int:
    """Return the column of a recipe's printed table that has the accuracy."""
    return next(i for i, c in enumerate(recipe.published.columns) if c in ("accuracy", "top-1"))


def records_of(recipe: str, data: str, model: str, row: str) -> tuple[str, dict[str, Any]] | None:
    """Return the name and description of the records that contain this row of a table."""
    for name, about in index()["records"].items():
        if (about["recipe"], about["data"], about["model"]) == (recipe, data, model) and row in about[
            "rows"
        ].values():
            return name, about
    return None


def lines(recipe: Recipe) -> Iterator[str]:
    """Yield the ledger's lines of a recipe's printed accuracies."""
    column, official = value_column(recipe), index()["official"].get(recipe.name, {})
    deviations = "deviation" in recipe.published.columns
    rows = [(*r[:3], r[column], r[column + 1] if deviations else None) for r in recipe.published.rows]
    return cells_of(recipe, rows, "last", official)


def cells_of(
    recipe: Recipe, rows: Sequence[tuple[Any, ...]], measure: str, official: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the lines of printed values of a recipe's runs.

    ``rows`` have data, network, row, value and standard deviation; ``measure`` is the value's name in packed runs.
    """
    printed = {r[:3]: r[3] for r in rows}
    yield "| data | network | row | paper | gain | authors' code | ours | gain | minus control | verdict |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---|"
    for data, model, row, value, deviation in rows:
        entry = records_of(recipe.name, data, model, row)
        base = "plain" if (data, model, "plain") in printed else f"dml-{row.rpartition('-')[2]}"
        published = None if row == base else value - printed[data, model, base]
        ours = control = None
        judged, measured = f"not run: {cost(recipe, data, model, row):.2g} EFLOP a seed", NONE
        name, about = entry or ("", {})
        labels = {v: k for k, v in about.get("rows", {}).items()}
        if mine := accuracies(name, labels[row], measure) if entry else {}:
            measured = spread(mine)
            if row != base:
                ours = gain(mine, accuracies(name, labels[base], measure)) if base in labels else None
                control = gain(mine, accuracies(name, about["control"], measure)) if about["control"] else None
            full = is_full(about)
            judged = "the baseline" if published is None else verdict(published, ours, full=full)
            judged += "" if full else ", scaled"
        code = official.get(f"{data} {model}", {}).get(row)
        cells = [
            data, model, row, f"{value:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else ""),
            NONE if published is None else f"{published:+.2f}", NONE if code is None else f"{code:.2f}", measured,
            interval(ours), interval(control), judged,
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


@functools.cache
def measures() -> list[tuple[str, dict[str, Any], list[str]]]:
    """Return the printed tables of other measures than a recipe's accuracy, each with its lines."""
    result = []
    for name, about in index()["measures"].items():
        recipe, rows = recipes.load(about["recipe"]), about.get("rows")
        if rows is None:
            column = recipe.published.columns.index(about["column"])
            rows = [[*r[:3], r[column]] for r in recipe.published.rows]
        result.append((name, about, list(cells_of(recipe, [(*r, None) for r in rows], about["measure"], {}))))
    return result


def measure_section(name: str, about: Mapping[str, Any], rows: list[str]) -> str:
    """Return the section of a table of another measure."""
    out = [
        f"### {name}",
        "",
        f"{about['source']}: {about['quantity']}.",
        "",
        "```sh",
        *about["commands"],
        "```",
        "",
    ]
    return "\n".join([*out, *rows, ""])


def seconds_section() -> str:
    """Return RWP's table of seconds per step, next to the ratios of performance.md."""
    about = index()["seconds"]
    table = PERFORMANCE.read_text().partition(about["section"])[2].partition("\n| ")[2].partition("\n\n")[0]
    cells = [[cell.strip(" |") for cell in line.split(" | ")] for line in table.splitlines()[2:]]
    ratios = {method: (float(ratio), quartiles) for method, _, ratio, quartiles, *_ in cells}
    plain = {(r[0], r[4]): r[3] for r in about["rows"] if r[2] == "plain"}
    out = ["### rwp-table6", "", f"{about['source']}: seconds per step, and their ratio to plain training's.", ""]
    out += ["Ours: the ratio of CPU times of ResNet-18 on 32 x 32 pixels (performance.md), with its quartiles. It"]
    out += ["agrees if the quartiles are on the same side of 1 as the paper's ratio.", ""]
    out += ["```sh", about["command"], "```", ""]
    out += [
        "| data | network | row | GPUs | paper, s | ratio | ours | verdict |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for data, model, row, value, gpus in about["rows"]:
        alone = next(v for (kind, _), v in plain.items() if kind == data)
        ratio, quartiles = ratios[row]
        low, high = map(float, quartiles.split("-"))
        on_one = (data, gpus) in plain
        judged = "not run: it needs twice the GPUs; ours is on one device"
        if row == "plain":
            judged = "the baseline"
        elif on_one:
            judged = f"{'agrees' if (low > 1) == (value > alone) else 'differs'}, scaled"
        cells = [
            data,
            model,
            row,
            str(gpus),
            f"{value:.3f}",
            f"{value / alone:.2f}",
            f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
        ]
        out.append("| " + " | ".join([*cells, judged]) + " |")
    return "\n".join([*out, ""])


def table(recipe: Recipe, rows: list[str]) -> str:
    """Return the section of one table."""
    about = [a | {"name": n} for n, a in index()["records"].items() if a["recipe"] == recipe.name]
    out = [f"### {recipe.name}", "", f"{recipe.source}: {recipe.published.quantity}.", ""]
    path = {"cifar10": "cifar10:PATH", "cifar100": "cifar100:PATH", "folder": "folder:IMAGENET"}[recipe.data[0]]
    out += ["```sh", f"steppe train recipe={recipe.name}:NETWORK:ROW --dataset {path} --seed SEED", "```", ""]
    for a in about:
        out.append(f"Ours: {a['protocol']} (`records/{a['name']}.json`); control: {a['control'] or 'none'}.\n")
    if note := index()["official"].get(recipe.name, {}).get("note"):
        out.append(f"Authors' code: {note}.\n")
    return "\n".join([*out, *rows, ""])


def answer(question: str, name: str, pairs: list[tuple[str, str]]) -> str:
    """Return a question and the differences that answer it."""
    out = [f"**{question}**", "", "| difference | points | seeds |", "|---|---:|---:|"]
    for a, b in pairs:
        d = gain(accuracies(name, a), accuracies(name, b))
        out.append(f"| `{a}` minus `{b}` | {interval(d)} | {d.n if d else 0} |")
    return "\n".join([*out, ""])


def questions() -> str:
    """Return the section of questions and answers."""
    parts = []
    for one in index().get("questions", []):
        pairs = [(a, b) for a, b in one.get("pairs", ())]
        text = answer(one["ask"], one["records"], pairs) if pairs else f"**{one['ask']}**\n"
        parts.append(f"{text}\n{one['read'].strip()}\n")
    return "\n".join(parts)


def page() -> str:
    """Return the whole ledger."""
    cells = [line for rows in (*(r for _, r in tables()), *(r for *_, r in measures())) for line in rows[2:]]
    cells += [line for line in seconds_section().splitlines() if line.endswith("|")][2:]
    count = {
        label: sum(f"| {label}" in line for line in cells)
        for label in ("agrees", "differs", "undecided", "the baseline", "not run")
    }
    head = (
        "# The ledger\n\nEvery accuracy that the papers print, cell by cell, next to ours and to its control. "
        "`python docs/make_ledger.py` writes it from `docs/records`; only `records/index.yaml` is by hand. "
        "`python docs/make_ledger.py FOLDER` first packs what `steppe reproduce` has trained.\n"
    )
    tally = f"{len(cells)} cells: " + ", ".join(f"{n} {label}" for label, n in count.items()) + ".\n"
    rest = ["| paper | where | what | status | command |", "|---|---|---|---|---|"]
    rest += ["| " + " | ".join([*row[:-1], f"`{row[-1]}`"]) + " |" for row in index()["elsewhere"]]
    parts = [head, RULE, tally, "## Questions\n", questions(), "## Tables\n"]
    parts += [table(recipe, rows) for recipe, rows in tables()]
    parts += [measure_section(*one) for one in measures()] + [seconds_section()]
    return "\n".join([*parts, "## Other tables and figures\n", *rest, ""])


def results() -> str:
    """Return the page of the tables that `steppe reproduce` trained."""
    out = ["# The papers' tables, reproduced", ""]
    out += [
        "Accuracies of the test images after the last epoch, in percent: mean ± standard deviation over n seeds."
    ]
    out += [
        "Gains are differences to plain training in percentage points, ours with a 95 % interval, paired by seed."
    ]
    out += [
        "How to train them, and to go on: [in pieces](../how-to/reproduce.md); verdicts: [ledger](../ledger.md).",
        "",
    ]
    if not reproduced():
        out += ["No table is trained yet.", ""]
    for name, about in reproduced().items():
        content = json.loads((FOLDER / f"{name}.json").read_text())
        recipe, control = recipes.load(about["recipe"]), about["control"]
        column = value_column(recipe)
        printed = {r[2]: r[column] for r in recipe.published.rows if r[:2] == (about["data"], about["model"])}
        out += [f"## {about['recipe']}: {about['model']} on {about['data']}", ""]
        out += [
            f"{recipe.source}. Protocol: {about['protocol']}. torch {content['torch']} on {content['device']}.",
            "",
        ]
        out += ["```sh", content["command"], "```", ""]
        out += [f"| row | paper | ours | best on validation | gain, paper | ours | minus {control or NONE} |"]
        out += ["|---|---:|---:|---:|---:|---:|---:|"]
        plain = accuracies(name, "plain")
        for row in about["rows"]:
            mine, value = accuracies(name, row), printed.get(row)
            theirs = value - printed["plain"] if value is not None and "plain" in printed else None
            cells = [
                f"`{row}`", NONE if value is None else f"{value:.2f}", spread(mine),
                spread(accuracies(name, row, "best_val")), NONE if theirs is None else f"{theirs:+.2f}",
                NONE if row == "plain" else interval(gain(mine, plain)),
                interval(gain(mine, accuracies(name, control))) if control and row != control else NONE,
            ]  # fmt: skip
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def main(folders: list[str]) -> None:
    """Pack the folders, and write both pages."""
    for folder in folders:
        pack_records.pack_tables(Path(folder))
    for path, text in ((PAGE, page()), (RESULTS, results())):
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
