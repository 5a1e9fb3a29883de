"""What the page's template is filled with: plain text and coordinates, nothing that is markup."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from steppe.records import Comparison
from steppe.report import cost, text
from steppe.report.reading import CONTROLS, adjusted, remarks, sentences
from steppe.report.rows import Row, Spread, all_controls, controls_of, groups
from steppe.report.series import Series
from steppe.report.style import outline, styles
from steppe.report.text import plain_text
from steppe.stats import Difference

_STRIP = 130.0
_PARTS = {"train": "training", "val": "validation", "test": "test"}


def header(comparison: Comparison) -> dict[str, Any]:
    """Return the title, the line above it, the command and the line at the foot."""
    found = groups(comparison)
    count = len(comparison.methods)
    seeds = len({r.seed for r in comparison.records})
    where = ", ".join(dict.fromkeys(plain_text(dataset) for dataset, _ in found)) or "no data"
    networks = ", ".join(dict.fromkeys(plain_text(model) for _, model in found))
    epochs = comparison.study.get("epochs")
    parts = [networks, f"{seeds} {'seed' if seeds == 1 else 'seeds'}"]
    parts += [f"{epochs} epochs"] if epochs else []
    parts += [_date(comparison.created)]
    return {
        "title": f"{count} {'method' if count == 1 else 'methods'} on {where}",
        "eyebrow": " · ".join(plain_text(p) for p in parts if p),
        "command": plain_text(comparison.command),
        "colophon": f"Written by steppe {plain_text(comparison.environment.get('steppe', ''))}".strip() + ".",
    }


def group(comparison: Comparison, name: tuple[str, str], table: list[Row], drawn: list[Series]) -> dict[str, Any]:
    """Return the table, the legend and the cost figures of one data set and network."""
    order = list(comparison.methods)
    limits = _limits([r.difference for r in table if r.difference])
    return {
        "name": plain_text(", ".join(name)),
        "sentences": [minus(s) for s in sentences(table)],
        "remarks": [minus(s) for s in (adjusted(table), *remarks(table)) if s],
        "rows": [_row(row, order.index(row.method), limits) for row in table],
        "has_controls": any(row.controls for row in table),
        "curves": [(order.index(line.method), plain_text(line.method)) for line in drawn],
        "costs": [c for kind in get_args(cost.Cost) if (c := _cost(comparison, name, kind))],
    }


def failures(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the runs without a result: failed ones first, each with its message."""
    found = [r for status in ("failed", "unfinished") for r in comparison.records if r.status == status]
    return [
        {
            "status": r.status,
            "name": plain_text(r.method),
            "seed": r.seed,
            "group": plain_text(f"{r.dataset}, {r.model}"),
            "message": plain_text(r.message) or ("no message" if r.status == "failed" else "not finished"),
            "reached": f"{len(r.metrics)} {'epoch' if len(r.metrics) == 1 else 'epochs'} recorded",
        }
        for r in found
    ]


def facts(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration, the environment and the split as lists of terms and values."""
    study = {k: v for k, v in _flat(comparison.study) if k not in ("methods", "models", "datasets")}
    seeds = sorted({r.seed for r in comparison.records})
    study["seeds"] = ", ".join(map(str, seeds))
    split = []
    for name, about in comparison.data.items():
        sizes = [f"{about[part]:,} {word}" for part, word in _PARTS.items() if isinstance(about.get(part), int)]
        classes = [f"{about['classes']} classes"] if about.get("classes") else []
        note = [str(about["note"])] if about.get("note") else []
        split.append((plain_text(name), plain_text("; ".join([", ".join(sizes + classes), *note]))))
    environment = [(plain_text(k), plain_text(v)) for k, v in comparison.environment.items()]
    environment.append(("started", plain_text(comparison.created)))
    chosen = [(plain_text(k), plain_text(v)) for k, v in study.items()]
    return [("Images", split), ("Environment", environment), ("Configuration", chosen)]


def changed(comparison: Comparison) -> str:
    """Return what differs between the environments of the runs and of the comparison, or nothing."""
    ours = comparison.environment
    names = [
        name
        for r in comparison.records
        for name, value in ((r.result or {}).get("environment") or {}).items()
        if name in ours and ours[name] != value
    ]
    return ", ".join(plain_text(name) for name in dict.fromkeys(names))


def methods(comparison: Comparison) -> list[dict[str, str]]:
    """Return each method's sentence, resolved hyper-parameters and controls."""
    return [
        {
            "name": plain_text(label),
            "summary": plain_text(about.get("summary") or ""),
            "resolved": plain_text(about.get("resolved") or ""),
            "controls": ", ".join(plain_text(c) for c in controls_of(comparison, label)),
        }
        for label, about in comparison.methods.items()
    ]


def controls(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what each control of the comparison is."""
    found = all_controls(comparison)
    about = {c: CONTROLS.get(c) or str(comparison.methods[c].get("summary") or "") for c in found}
    return [(plain_text(c), plain_text(said).rstrip(".")) for c, said in about.items()]


def _row(row: Row, style: int, limits: tuple[float, float]) -> dict[str, Any]:
    return {
        "name": plain_text(row.method),
        "summary": plain_text(row.summary),
        "style": style,
        "ok": row.ok,
        "failed": row.failed,
        "unfinished": row.unfinished,
        "last": _accuracy(row.last, row.decimals),
        "best": _accuracy(row.best, row.decimals),
        "difference": _difference(row.difference, row),
        "strip": _strip(row.difference, limits) if row.difference else None,
        "controls": [(plain_text(name), _difference(d, row)) for name, d in row.controls.items()],
        "controls_sort": min((d.mean for d in row.controls.values()), default=""),
        "passes": text.passes(row),
        "passes_sort": "" if row.backward is None else (row.forward or 0) + row.backward,
        "ratio": text.ratio(row),
        "seconds": "" if row.seconds is None else _duration(row.seconds),
        "seconds_sort": "" if row.seconds is None else row.seconds,
        "memory": text.NONE if row.memory is None else f"{row.memory:,.0f} MB",
        "memory_sort": "" if row.memory is None else row.memory,
    }


def _accuracy(value: Spread | None, decimals: int) -> dict[str, Any]:
    if value is None:
        return {"mean": text.NONE, "std": "", "sort": ""}
    std = "" if value.std is None else text.number(value.std, decimals)
    return {"mean": text.number(value.mean, decimals), "std": std, "sort": value.mean}


def _difference(value: Difference | None, row: Row) -> dict[str, Any] | None:
    if value is None:
        return None
    shown = minus(text.interval(value, row.decimals)) if value.low is not None else "(no interval)"
    return {
        "mean": minus(text.number(value.mean, row.decimals, sign=True)),
        "interval": shown if value.n in (row.ok, 1) else f"{shown} n={value.n}",
        "strong": value.separates,
        "sort": value.mean,
    }


def _limits(found: list[Difference]) -> tuple[float, float]:
    """Return the ends of the interval strips; one very wide interval does not flatten all others."""
    widest = max(1.0, 2.5 * max((abs(d.mean) for d in found), default=0.0))
    ends = [v for d in found for v in (d.mean, d.low, d.high) if v is not None]
    return max(-widest, min([*ends, -0.1])), min(widest, max([*ends, 0.1]))


def _strip(value: Difference, limits: tuple[float, float]) -> dict[str, float | None]:
    def x(v: float) -> float:
        share = (v - limits[0]) / (limits[1] - limits[0])
        return round(5 + (_STRIP - 10) * min(max(share, -0.03), 1.03), 1)

    ends = (None, None) if value.low is None or value.high is None else (x(value.low), x(value.high))
    return {"zero": x(0.0), "mean": x(value.mean), "low": ends[0], "high": ends[1]}


def _cost(comparison: Comparison, name: tuple[str, str], kind: cost.Cost) -> dict[str, Any] | None:
    placed = cost.layout(comparison, name, kind)
    if placed is None:
        return None
    order, look = list(comparison.methods), styles(comparison)

    def x(v: float) -> float:
        return round(46 + 906 * (v - placed.x[0]) / (placed.x[1] - placed.x[0]), 1)

    def y(v: float) -> float:
        return round(386 - 374 * (v - placed.y[0]) / (placed.y[1] - placed.y[0]), 1)

    points = []
    for p in placed.points:
        std = p.accuracy.std
        points.append(
            {
                "style": order.index(p.method),
                "name": plain_text(p.method),
                "mark": outline(look[p.method].marker or "o"),
                "about": f"{plain_text(p.method)}: {text.spread(p.accuracy, 2)} %, {p.cost:,.0f} {kind}",
                "x": x(p.x),
                "y": y(p.accuracy.mean),
                "low": y(p.accuracy.mean - std) if std else None,
                "high": y(p.accuracy.mean + std) if std else None,
                "label_x": x(p.label_x),
                "label_y": y(p.label_y),
            }
        )
    return {
        "kind": kind,
        "title": cost.TITLES[kind],
        "label": f"Test accuracy against {cost.TITLES[kind].lower()}, {plain_text(', '.join(name))}",
        "points": points,
        "x_ticks": [{"at": x(t), "text": f"{t:,g}"} for t in placed.x_ticks],
        "y_ticks": [{"at": y(t), "text": f"{t:g}"} for t in placed.y_ticks],
    }


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def _date(created: str) -> str:
    try:
        day = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{day.day} {day:%B %Y}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def minus(shown: str) -> str:
    """Return the text with true minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", shown)
