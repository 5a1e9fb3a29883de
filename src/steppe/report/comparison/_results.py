"""The results of one data set and network as the page shows them: the runs as made, and at equal budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steppe.records import Comparison
from steppe.report import formatting
from steppe.report.comparison.equal_budget import EqualBudget, Reached, budgets
from steppe.report.comparison.summary import ResultRow, Spread
from steppe.report.formatting import minus, plain_text
from steppe.report.statistics import Difference

AS_RUN = "run"
MODES: dict[str, str] = {
    AS_RUN: "as run",
    "epochs": "at equal epochs",
    "gradients": "at equal compute",
    "seconds": "at equal time",
}
_AMOUNTS = {"epochs": "{:,.4g} epochs", "gradients": "{:,.0f} gradient evaluations", "seconds": "{:,.1f} seconds"}
_TRAINS = {
    "epochs": "steppe compare --epochs N",
    "gradients": "steppe compare --match gradients",
    "seconds": "steppe compare --match seconds --seconds N",
}
_STRIP = 130.0


def tables(comparison: Comparison, group: tuple[str, str], rows: list[ResultRow]) -> list[dict[str, Any]]:
    """Return a table per way of comparing: first the runs as they were made, then one per equal budget."""
    order = list(comparison.methods)
    common = [_common(row, order.index(row.method)) for row in rows]
    return [
        {
            "mode": AS_RUN,
            "about": _as_run(comparison, rows),
            "trains": "",
            **_heads(rows),
            "rows": _run_rows(rows, common),
        },
        *(_at(b, rows, common, comparison.data.get(group[0], {})) for b in budgets(comparison, group)),
    ]


def _as_run(comparison: Comparison, rows: list[ResultRow]) -> list[str]:
    matched = {"epochs": "epochs", "gradients": "gradient evaluations", "seconds": "training seconds"}
    what = matched.get(str(comparison.study.get("match")))
    given = f"; every method was given the same number of {what}." if what else "."
    said = [f"Test accuracy at the end of each run{given}"]
    if any(row.best_of_all for row in rows):
        said.append(f"{formatting.BEST_OF_ALL.capitalize()}: {formatting.ABOUT_BEST_OF_ALL}")
    return said


def _heads(rows: list[ResultRow]) -> dict[str, Any]:
    heads = [("last", "Test, %\nlast epoch"), ("best", "Test, % at best\nvalidation epoch")]
    if any(row.best_of_all for row in rows):
        heads.append(("all", f"{formatting.BEST_OF_ALL.capitalize()},\ntest %"))
    return {"heads": heads, "has_controls": any(row.controls for row in rows)}


def _run_rows(rows: list[ResultRow], common: list[dict[str, Any]]) -> list[dict[str, Any]]:
    limits = _limits([r.difference for r in rows])
    count = len(_heads(rows)["heads"])
    shown = []
    for row, start in zip(rows, common, strict=True):
        accuracies = [accuracy(a, row.decimals) for a in (row.last, row.best, row.best_of_all)]
        against = _against(row.difference, row.controls, row, row.decimals, limits)
        shown.append(start | {"cells": accuracies[:count]} | against)
    return shown


def _at(
    budget: EqualBudget, rows: list[ResultRow], common: list[dict[str, Any]], data: Mapping[str, Any]
) -> dict[str, Any]:
    amount = _AMOUNTS[budget.axis].format(budget.amount)
    decimals = 2 if (data.get("val") or 0) >= 2000 else 1
    found = {r.method: r for r in budget.reached}
    limits = _limits([r.difference for r in budget.reached])
    shown = []
    for row, start in zip(rows, common, strict=True):
        here = found.get(row.method) or Reached(row.method, None, None)
        cells = [accuracy(here.accuracy, decimals), _number(here.epochs)]
        shown.append(start | {"cells": cells} | _against(here.difference, here.controls, row, decimals, limits))
    return {
        "mode": budget.axis,
        "about": [
            f"Validation accuracy at {amount}, the most that every finished run reached, read off the training "
            "curves along a straight line between epochs; test images are looked at only when a run has ended. "
            "No run was planned for this budget: one whose learning-rate schedule ends there could do better."
        ],
        "trains": _TRAINS[budget.axis],
        "amount": budget.amount,
        "heads": [("val", f"Validation, % at\n{amount}"), ("epochs", "Epochs\nby then")],
        "has_controls": any(r.controls for r in budget.reached),
        "rows": shown,
    }


def _common(row: ResultRow, style: int) -> dict[str, Any]:
    return {
        "name": plain_text(row.method),
        "summary": plain_text(row.summary),
        "style": style,
        "ok": row.ok,
        "failed": row.failed,
        "unfinished": row.unfinished,
        "passes": formatting.passes(row),
        "passes_sort": "" if row.backward is None else (row.forward or 0) + row.backward,
        "ratio": formatting.ratio(row),
        "seconds": "" if row.seconds is None else duration(row.seconds),
        "seconds_sort": "" if row.seconds is None else row.seconds,
        "memory": formatting.NONE if row.memory is None else f"{row.memory:,.0f} MB",
        "memory_sort": "" if row.memory is None else row.memory,
    }


def _against(
    difference: Difference | None,
    controls: Mapping[str, Difference],
    row: ResultRow,
    decimals: int,
    limits: tuple[float, float],
) -> dict[str, Any]:
    return {
        "difference": _difference(difference, row.ok, decimals),
        "strip": _strip(difference, limits) if difference else None,
        "controls": [(plain_text(name), _difference(d, row.ok, decimals)) for name, d in controls.items()],
        "controls_sort": min((d.mean for d in controls.values()), default=""),
    }


def accuracy(value: Spread | None, decimals: int) -> dict[str, Any]:
    """Return a cell's mean, deviation and the number that it is sorted by."""
    if value is None:
        return {"mean": formatting.NONE, "std": "", "sort": ""}
    std = "" if value.std is None else formatting.number(value.std, decimals)
    return {"mean": formatting.number(value.mean, decimals), "std": std, "sort": value.mean}


def _number(value: float | None) -> dict[str, Any]:
    shown = formatting.NONE if value is None else formatting.number(value, 1)
    return {"mean": shown.removesuffix(".0"), "std": "", "sort": "" if value is None else value}


def _difference(value: Difference | None, n: int, decimals: int) -> dict[str, Any] | None:
    if value is None:
        return None
    shown = minus(formatting.interval(value, decimals)) if value.low is not None else "(no interval)"
    return {
        "mean": minus(formatting.number(value.mean, decimals, sign=True)),
        "interval": shown if value.n in (n, 1) else f"{shown} n={value.n}",
        "strong": value.separates,
        "sort": value.mean,
    }


def _limits(differences: list[Difference | None]) -> tuple[float, float]:
    """Return the ends of the interval strips; one very wide interval does not flatten all others."""
    found = [d for d in differences if d]
    widest = max(1.0, 2.5 * max((abs(d.mean) for d in found), default=0.0))
    ends = [v for d in found for v in (d.mean, d.low, d.high) if v is not None]
    return max(-widest, min([*ends, -0.1])), min(widest, max([*ends, 0.1]))


def _strip(value: Difference, limits: tuple[float, float]) -> dict[str, float | None]:
    def x(v: float) -> float:
        share = (v - limits[0]) / (limits[1] - limits[0])
        return round(5 + (_STRIP - 10) * min(max(share, -0.03), 1.03), 1)

    ends = (None, None) if value.low is None or value.high is None else (x(value.low), x(value.high))
    return {"zero": x(0.0), "mean": x(value.mean), "low": ends[0], "high": ends[1]}


def duration(seconds: float) -> str:
    """Return seconds as a table shows them: in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
