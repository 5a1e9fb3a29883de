"""Write the tables of suites from ``docs/records`` into their pages: python docs/make_suites.py

A page of ``docs/results`` that has the marks below gets one table per finished task of the records with its name.
It has a row per method from the best to the worst mean at equal compute, the controls last. Of several tasks
there are also the league tables of both views, with the columns of `steppe.report.suite.league`.
"""

import json
import math
from collections import Counter
from operator import eq, lt
from pathlib import Path
from typing import Any

from steppe.config import suites
from steppe.report.statistics import Difference, mean_std, paired_difference

DOCS = Path(__file__).parent
PAGES = ("small-suite", "recent-methods")
NONE = "\N{EN DASH}"
BEGIN, END = "<!-- tables: python docs/make_suites.py -->", "<!-- end of tables -->"


def values(row: dict[str, Any]) -> dict[int, float]:
    """Return the value after the last epoch by seed."""
    return dict(zip(row["seed"], row["last"], strict=True))


def difference_to(plain: dict[str, Any], row: dict[str, Any]) -> Difference:
    """Return a row minus plain training, paired by seed."""
    own, base = values(row), values(plain)
    seeds = sorted(own.keys() & base.keys())
    return paired_difference([own[s] for s in seeds], [base[s] for s in seeds])


def cell(row: dict[str, Any], plain: dict[str, Any] | None, decimals: int) -> str:
    """Return mean and deviation, and the difference to plain training; bold if its interval excludes 0."""
    mean, std = mean_std(list(values(row).values()))
    text = f"{mean:.{decimals}f}" + (f" ± {std:.{decimals}f}" if std is not None else "")
    if not plain:
        return f"{text} | {NONE}"
    d = difference_to(plain, row)
    difference = f"{d.mean:+.{decimals}f}"
    if d.low is not None and d.high is not None:
        difference += f" [{d.low:.{decimals}f}, {d.high:.{decimals}f}]"
    return f"{text} | **{difference}**" if d.significant else f"{text} | {difference}"


def table(task: str, content: dict[str, Any], controls: set[str]) -> str:
    """Return the table of a task in both views."""
    compute, epochs = (content["views"][view][task] for view in ("compute", "epochs"))
    rows = compute["rows"]
    decimals = 1 if compute["higher"] else 2  # shares are in percent
    sign = -1 if compute["higher"] else 1
    order = sorted(rows, key=lambda name: (name in controls, sign * (mean_std(rows[name]["last"])[0])))
    better = "higher" if compute["higher"] else "lower"
    seeds = max(len(row["seed"]) for row in rows.values())
    out = [f"### {task}", "", f"{compute['metric']}, {better} is better; {seeds} seeds.", ""]
    out += ["| method | equal compute | minus plain | equal epochs | minus plain | passes | chosen setting |"]
    out += ["|---|---:|---:|---:|---:|---:|---|"]
    for name in order:
        both = [
            cell(view["rows"][name], None if name == "plain" else view["rows"]["plain"], decimals)
            for view in (compute, epochs)
        ]
        tuned = content["tuning"][task][name]
        chosen = NONE if tuned["chosen"] is None else f"`{tuned['settings'][tuned['chosen']]}`"
        passes = " / ".join(f"{p:.3g}" for p in epochs["rows"][name]["passes"])
        title = f"`{name}` (control)" if name in controls else f"`{name}`"
        out.append(f"| {title} | {both[0]} | {both[1]} | {passes} | {chosen} |")
    return "\n".join(out)


def league(view: dict[str, Any], tasks: list[str], controls: set[str]) -> str:
    """Return the league table of a view over several tasks: ranks, wins, and distances to the best.

    Ranks are among the methods that have every task; the others, which do not apply to some, come after them.
    """
    every = set.intersection(*(set(view[task]["rows"]) for task in tasks)) - controls
    ranks: dict[str, list[float]] = {}
    excess: dict[str, list[float]] = {}
    first, won, lost = Counter[str](), Counter[str](), Counter[str]()
    for task in tasks:
        rows, higher = view[task]["rows"], view[task]["higher"]
        # the error of a share is 100 minus it
        errors = {
            name: mean_std(row["last"])[0] * (-1 if higher else 1) + 100 * higher for name, row in rows.items()
        }
        methods = [name for name in rows if name not in controls]
        best = min(errors[name] for name in methods)
        for name, row in rows.items():
            d = difference_to(rows["plain"], row)
            better = (d.mean > 0) == higher
            won[name] += d.significant and better
            lost[name] += d.significant and not better
            over = errors[name] / best - 1 if best > 0 else math.inf if errors[name] > 0 else 0.0
            excess.setdefault(name, []).append(over)
            if name in methods:
                peers = [errors[other] for other in (every if len(every) > 1 else {*methods}) - {name}]
                below, equal = (sum(compare(e, errors[name]) for e in peers) for compare in (lt, eq))
                ranks.setdefault(name, []).append(1 + below + equal / 2)
                first[name] += errors[name] == best
    out = ["| method | tasks | mean rank | best on | better than plain | worse | within 5 % | within 20 % |"]
    out += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    order = sorted(
        excess,
        key=lambda name: (name in controls, name not in every | controls, mean_std(ranks.get(name, [0.0]))[0]),
    )
    for name in order:
        rank = f"{mean_std(ranks[name])[0]:.1f} | {first[name]}" if name in ranks else f"{NONE} | {NONE}"
        shares = [f"{sum(e <= x + 1e-12 for e in excess[name]) / len(excess[name]):.0%}" for x in (0.05, 0.2)]
        title = f"`{name}` (control)" if name in controls else f"`{name}`"
        counts = f"{NONE} | {NONE}" if name == "plain" else f"{won[name]} | {lost[name]}"
        out.append(f"| {title} | {len(excess[name])} | {rank} | {counts} | {shares[0]} | {shares[1]} |")
    return "\n".join(out)


def is_finished(task: str, content: dict[str, Any]) -> bool:
    """Return whether a task has all seeds of all its rows in both views."""
    views, seeds = content["views"].values(), len(content["seeds"]["final"])
    rows = {*content["tuning"][task]}
    full = [{name for name, row in view[task]["rows"].items() if len(row["seed"]) == seeds} for view in views]
    return all(own == rows for own in full) and "plain" in rows


def page(name: str) -> str:
    """Return a page with its tables written anew."""
    content = json.loads((DOCS / f"records/{name}.json").read_text("utf-8"))
    controls = {row.name for row in suites.load(name).rows if row.control}
    finished = [task for task in content["views"]["compute"] if is_finished(task, content)]
    parts = [table(task, content, controls) for task in finished]
    if len(finished) > 1:
        titles = {"compute": "equal compute", "epochs": "equal epochs"}
        parts[:0] = [
            f"### All tasks at {titles[view]}\n\n{league(content['views'][view], finished, controls)}"
            for view in titles
        ]
    tables = "\n\n".join(parts)
    text = (DOCS / f"results/{name}.md").read_text("utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / f"results/{name}.md").write_text(page(name), "utf-8")
        print(DOCS / f"results/{name}.md")
