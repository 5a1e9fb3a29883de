"""What the page's template is filled with: plain text and coordinates, nothing that is markup."""

from __future__ import annotations

import datetime
from typing import Any, get_args

from steppe.records import Comparison
from steppe.report.comparison import _config_diff, _results, deployables, pareto_view
from steppe.report.comparison.conclusions import CONTROLS, adjusted, remarks, sentences
from steppe.report.comparison.curves import Series
from steppe.report.comparison.pareto import CostAxis
from steppe.report.comparison.summary import ResultRow, all_controls, controls_of, groups
from steppe.report.formatting import left_out, minus, plain_text

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


def group(
    comparison: Comparison, name: tuple[str, str], table: list[ResultRow], drawn: list[Series]
) -> dict[str, Any]:
    """Return the tables, the legend and the cost figures of one data set and network."""
    order = list(comparison.methods)
    return {
        "name": plain_text(", ".join(name)),
        "sentences": [minus(s) for s in sentences(table)],
        "remarks": [minus(s) for s in (adjusted(table), *remarks(table)) if s],
        "tables": _results.tables(comparison, name, table),
        "curves": [(order.index(line.method), plain_text(line.method)) for line in drawn],
        "costs": [c for kind in get_args(CostAxis) if (c := pareto_view.figure(comparison, name, kind))],
    }


def deployable(comparison: Comparison) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return what methods can deploy, per data set and network that has such methods."""
    order = list(comparison.methods)
    found: dict[str, list[dict[str, Any]]] = {}
    for part in deployables.parts(comparison):
        own = found.setdefault(plain_text(f"{part.dataset}, {part.model}"), [])
        first = part.name == deployables.DEPLOYED
        own.append(
            {
                "first": first,
                "method": plain_text(part.method),
                "style": order.index(part.method),
                "name": plain_text(part.name),
                "kind": " strong" if first else " muted" if part.name == deployables.DIVERSITY else "",
                "cells": [_results.accuracy(s, part.decimals) for s in (part.last, part.best)],
            }
        )
    return list(found.items())


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
    study = {k: v for k, v in _config_diff.flat(comparison.study) if k not in ("methods", "models", "datasets")}
    seeds = sorted({r.seed for r in comparison.records})
    study["seeds"] = ", ".join(map(str, seeds))
    split = []
    for name, about in comparison.data.items():
        sizes = [f"{about[part]:,} {word}" for part, word in _PARTS.items() if isinstance(about.get(part), int)]
        classes = [f"{about['classes']} classes"] if about.get("classes") else []
        note = [str(about["note"])] if about.get("note") else []
        note += [left_out(names)] if (names := about.get("skipped")) else []
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


def methods(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each method's sentence, controls and hyper-parameters, those marked in which rows differ."""
    resolved = _config_diff.of_methods(comparison)
    return [
        {
            "name": plain_text(label),
            "summary": plain_text(about.get("summary") or ""),
            "resolved": resolved[label] if about.get("resolved") else [],
            "controls": ", ".join(plain_text(c) for c in controls_of(comparison, label)),
        }
        for label, about in comparison.methods.items()
    ]


def folders(comparison: Comparison) -> list[tuple[str, list[tuple[int, str]]]]:
    """Return the folder of each seed's run, per method, data set and network."""
    several = len(groups(comparison)) > 1
    found: dict[str, list[tuple[int, str]]] = {}
    for r in comparison.records:
        name = f"{r.method}, {r.dataset}, {r.model}" if several else r.method
        found.setdefault(plain_text(name), []).append((r.seed, f"runs/{r.digest}"))
    return list(found.items())


def controls(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what each control of the comparison is."""
    found = all_controls(comparison)
    about = {c: CONTROLS.get(c) or str(comparison.methods[c].get("summary") or "") for c in found}
    return [(plain_text(c), plain_text(said).rstrip(".")) for c, said in about.items()]


def _date(created: str) -> str:
    try:
        day = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{day.day} {day:%B %Y}"
