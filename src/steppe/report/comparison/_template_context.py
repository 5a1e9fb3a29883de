"""What the page's template is filled with; the template formats it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, get_args

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison import _config_diff, classes, deployables, pareto
from steppe.report.comparison.conclusions import (
    CONTROLS,
    adjusted,
    missing_controls,
    on_front,
    ranking,
    remarks,
    sentences,
)
from steppe.report.comparison.curves import Series, titles
from steppe.report.comparison.equal_budget import BudgetRow, budgets
from steppe.report.comparison.summary import (
    BASELINE,
    ResultRow,
    Spread,
    all_controls,
    controls_of,
    decimals,
    groups,
    metric_of,
    metric_of_all,
    samples_of_all,
)
from steppe.report.formatting import count, minus
from steppe.report.metric_text import MetricText
from steppe.report.statistics import Difference

AS_RUN = "run"
MODES: dict[str, str] = {
    AS_RUN: "as run",
    "epochs": "at equal epochs",
    "gradients": "at equal compute",
    "seconds": "at equal time",
}
_AMOUNTS = {"epochs": "{:,.4g} epoch", "gradients": "{:,.0f} gradient evaluation", "seconds": "{:,.1f} second"}
_COMMANDS = {
    "epochs": "steppe compare --epochs N",
    "gradients": "steppe compare --match gradients",
    "seconds": "steppe compare --match seconds --seconds N",
}
_OF_IMAGES = [f"data.{name}" for name in ("size", "augment", "normalize", "skip_corrupt", "views", "noise")]
_MATCHED = {"epochs": "epochs", "gradients": "gradient evaluations", "seconds": "training seconds"}


def context(
    comparison: Comparison, rows: list[ResultRow], curves: Mapping[tuple[str, str], list[Series]]
) -> dict[str, Any]:
    """Return everything that the template prints, but for colours, figures and downloads."""
    sections = [
        _section(comparison, group, [r for r in rows if (r.dataset, r.model) == group], lines)
        for group, lines in curves.items()
    ]
    parts = deployables.parts(comparison)
    every = [table for section in sections for table in section["tables"]]
    modes = {table["mode"] for table in every}
    return {
        "command": comparison.command,
        "groups": sections,
        "several": len(sections) > 1,
        "metric": metric_of_all(comparison),
        "samples": samples_of_all(comparison),
        "ranking": minus(ranking(rows)),
        "hint": missing_controls(comparison),
        "costs": _best_corner(metric_of_all(comparison)),
        "modes": [(mode, name) for mode, name in MODES.items() if mode in modes],
        "titles": MODES,
        "matched": _MATCHED.get(str(comparison.study.get("match"))),
        "watched": any(row.best_of_all for row in rows),
        "spread": formatting.has_spread(rows),
        "interval": any(table["has_interval"] for table in every),
        "deployable": formatting.by_group(parts),
        "deployable_note": deployables.note(parts),
        "class_tables": classes.tables(comparison),
        "classes_title": classes.TITLE,
        "failures": [r for status in ("failed", "unfinished") for r in comparison.records if r.status == status],
        "fact_groups": _facts(comparison),
        "changed": _changed(comparison),
        "run_differences": _config_diff.of_runs(comparison),
        "methods": comparison.methods,
        "resolved": _config_diff.of_methods(comparison),
        "controls_of": {method: _named_controls(comparison, method) for method in comparison.methods},
        "controls": {c: CONTROLS.get(c, comparison.methods[c].get("summary")) for c in all_controls(comparison)},
        "folders": _folders(comparison),
        "progress": _progress(comparison),
    }


def _named_controls(comparison: Comparison, method: str) -> list[str]:
    """Return the method's controls, plain too where the method names it."""
    plain = BASELINE in (comparison.methods[method].get("controls") or []) and BASELINE in comparison.methods
    return [*([BASELINE] if plain else []), *controls_of(comparison, method)]


def _section(
    comparison: Comparison, group: tuple[str, str], rows: list[ResultRow], lines: list[Series]
) -> dict[str, Any]:
    """Return the sentences, tables and curves of one data set and network."""
    text = metric_of(comparison, group[0])
    layouts = {cost: pareto.place(comparison, group, cost) for cost in get_args(pareto.CostAxis)}
    return {
        "name": ", ".join(group),
        "metric": text,
        "samples": formatting.samples_name(comparison.data.get(group[0], {})),
        "metrics": [(name, _small(title)) for name, title in titles(comparison, group).items()],
        "sentences": [minus(s) for s in sentences(rows)],
        "remarks": [minus(s) for s in (adjusted(rows), *remarks(rows)) if s],
        "tables": [_as_run(rows), *_at_budgets(comparison, group, rows)],
        "curves": [line.method for line in lines],
        "fronts": [
            on_front([p.method for p in layout.front], len(layout.points), pareto.COSTS[cost], text)
            for cost, layout in layouts.items()
            if layout
        ],
    }


def _best_corner(text: MetricText) -> str:
    """Return where the best methods are in the figure of costs, and why."""
    if text.several:
        return "left: upper where higher is better, lower where lower is better"
    better = "more accuracy" if text.is_accuracy else f"{'more' if text.metric.higher else 'less'} {text.name}"
    return f"{'upper' if text.metric.higher else 'lower'} left: {better} for less compute"


def _small(title: str) -> str:
    """Return a curve's title as a choice: without its remark, beginning in lower case."""
    title = title.removesuffix(" (training batches)")
    return title[:1].lower() + title[1:]


def _as_run(rows: list[ResultRow]) -> dict[str, Any]:
    text = rows[0].text
    test = text.with_unit("Test" if text.is_accuracy else f"Test {text.name}")
    heads = [("last", f"{test}\nlast epoch"), ("best", f"{test} at best\nvalidation epoch")]
    if any(r.best_of_all for r in rows):
        best = f"test{text.after}" if text.metric.percent else text.with_unit("test")
        heads.append(("all", f"{formatting.BEST_OF_ALL.capitalize()},\n{best}"))
    cells = [[_value(a, r.decimals) for a in (r.last, r.best, r.best_of_all)][: len(heads)] for r in rows]
    return {"mode": AS_RUN, "heads": heads, **_rows(rows, rows, cells, rows[0].decimals, text)}


def _at_budgets(comparison: Comparison, group: tuple[str, str], rows: list[ResultRow]) -> Iterator[dict[str, Any]]:
    places, text = decimals(comparison, group, "val"), metric_of(comparison, group[0])
    head = text.with_unit("Validation" if text.is_accuracy else f"Validation {text.name}")
    for budget in budgets(comparison, group):
        amount = _amount(budget.axis, budget.amount)
        by_method = {row.method: row for row in budget.rows}
        own = [by_method.get(row.method) or BudgetRow(row.method, None, None) for row in rows]
        cells = [
            [_value(b.value, places), (formatting.number(b.epochs).removesuffix(".0"), "", b.epochs)] for b in own
        ]
        yield {
            "mode": budget.axis,
            "amount": budget.amount,
            "budget": amount,
            "command": _COMMANDS[budget.axis],
            "heads": [("val", f"{head} at\n{amount}"), ("epochs", "Epochs\nby then")],
            **_rows(rows, own, cells, places, text),
        }


def _amount(axis: str, amount: float) -> str:
    text = _AMOUNTS[axis].format(amount)
    return text if text.startswith("1 ") else f"{text}s"


def _rows(
    rows: list[ResultRow],
    own: Sequence[ResultRow | BudgetRow],
    cells: list[Any],
    places: int,
    text: MetricText,
) -> dict[str, Any]:
    """Return a table's rows: the method's result, its cells, differences and the interval's strip."""
    limits = _limits([b.difference for b in own], text)
    return {
        "has_controls": any(b.controls for b in own),
        "has_interval": formatting.has_interval(own),
        "places": places,
        "rows": [
            (row, values, b.difference, b.controls, _strip(b.difference, limits) if b.difference else None)
            for row, b, values in zip(rows, own, cells, strict=True)
        ],
    }


def _value(value: Spread | None, places: int) -> tuple[str, str, float | None]:
    """Return a cell's mean and deviation as text, and the number that it is sorted by."""
    mean, _, std = formatting.spread(value, places).partition(" ± ")
    return mean, std, value.mean if value else None


def _limits(differences: Iterable[Difference | None], text: MetricText) -> tuple[float, float]:
    """Return the ends of the interval strips; one very wide interval does not flatten all others.

    They are at least 1 point apart from 0, or half a usual interval where the metric is not in percent.
    """
    present = [d for d in differences if d]
    largest = max((abs(d.mean) for d in present), default=0.0)
    halves = [(d.high - d.low) / 2 for d in present if d.low is not None and d.high is not None]
    least = 1.0 if text.metric.percent else (median(halves) if halves else 0.0) or largest or 1.0
    widest = max(least, 2.5 * largest)
    ends = [v for d in present for v in (d.mean, d.low, d.high) if v is not None]
    return max(-widest, min([*ends, -0.1 * least])), min(widest, max([*ends, 0.1 * least]))


def _strip(value: Difference, limits: tuple[float, float], width: float = 130) -> dict[str, float | None]:
    """Return where 0, the mean and the interval are on a strip of ``width`` pixels."""

    def x(v: float | None) -> float | None:
        if v is None:
            return None
        share = (v - limits[0]) / (limits[1] - limits[0])
        return round(5 + (width - 10) * min(max(share, -0.03), 1.03), 1)

    return {"zero": x(0.0), "mean": x(value.mean), "low": x(value.low), "high": x(value.high)}


def _facts(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return the environment and the configuration as terms and values."""
    study = {k: v for k, v in _config_diff.flat(comparison.study) if k not in ("methods", "models", "datasets")}
    if comparison.data and "images" not in map(formatting.samples_name, comparison.data.values()):
        study = {k: v for k, v in study.items() if k not in _OF_IMAGES}
    study["seeds"] = ", ".join(map(str, sorted({r.seed for r in comparison.records})))
    environment = comparison.environment | {"started": comparison.created}
    return {"Environment": environment, "Configuration": study}


def _changed(comparison: Comparison) -> list[str]:
    """Return the names of what differs between the environments of the runs and of the comparison."""
    ours = comparison.environment
    environments = [(r.result or {}).get("environment") or {} for r in comparison.records]
    names = [name for e in environments for name, value in e.items() if ours.get(name, value) != value]
    return list(dict.fromkeys(names))


def _folders(comparison: Comparison) -> dict[str, list[tuple[int, str]]]:
    """Return the folder of each seed's run, per method, data set and network."""
    several = len(groups(comparison)) > 1
    folders: dict[str, list[tuple[int, str]]] = {}
    for r in comparison.records:
        name = f"{r.method}, {r.dataset}, {r.model}" if several else r.method
        folders.setdefault(name, []).append((r.seed, f"runs/{r.digest}"))
    return folders


def _progress(comparison: Comparison) -> str:
    """Return how many runs have finished, failed and begun."""
    statuses = [r.status for r in comparison.records]
    parts = [f"{statuses.count('ok')} of {count(len(statuses), 'run')} finished"]
    parts += [f"{statuses.count('failed')} failed"] if "failed" in statuses else []
    begun = sum(r.status == "unfinished" and bool(r.metrics) for r in comparison.records)
    return ", ".join([*parts, f"{begun} begun"] if begun else parts) + "."
