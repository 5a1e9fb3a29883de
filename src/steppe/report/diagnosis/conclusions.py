"""What a diagnosis says in words and numbers: computed, and never beyond what intervals and orders say."""

from __future__ import annotations

import math
from typing import Any

from steppe.report import formatting
from steppe.report.comparison.summary import Spread
from steppe.report.diagnosis.summary import (
    CORRUPTED,
    SHARPNESS,
    Agreement,
    DiagnosisRow,
    Measure,
    agreement,
    minus_plain,
    named,
)
from steppe.report.formatting import plain_text
from steppe.report.statistics import Difference

CAUTION = (
    "A rank correlation over a handful of methods says that two orders agree here, not that one causes the "
    "other. Methods differ in more than flatness: in how far they fit, in noise, in the number of updates; and a"
    " network that has learnt little is flat and inaccurate at once, so read sharpness beside the loss. All "
    "measures but the adaptive and the filter-wise ones change when layers are rescaled, which BatchNorm allows "
    "without any change of the function. The p-values take methods as independent draws, which variants of one "
    "method are not, and are not adjusted for the number of measures."
)


ABOUT_EPOCHS = (
    "How sharp the network that a method deploys was while it trained: the rise of the loss at the end of one "
    "gradient step of length 0.05, on the same training images for all, not augmented; mean over seeds, band from "
    "the lowest to the highest. A network that has learnt nothing yet is flat: read it beside the loss."
)


def about_paths(found: dict[str, Any]) -> str:
    """Return what the figure of the trajectories shows, and what it does not."""
    off = [r for track in found["tracks"] for r in track["residuals"]]
    lowest = min(found["tracks"], key=lambda track: _known(track["own"][-1]))
    said = (
        f"The weights of seed {found['seed']}'s runs while they trained, all from one start, in the plane of the "
        "first two principal components of all that were kept: a dot each, the last one large. Every point of the "
        "ground is evaluated on the plane, BatchNorm's statistics, if there are any, estimated anew there on "
        f"{found['extent']['statistics']} training images. The weights themselves are {min(off):.2g} to "
        f"{max(off):.2g} away from the plane, so the shade under a dot is not its own loss. With its own weights "
        f"and statistics {plain_text(lowest['name'])} ends lowest, at {_known(lowest['own'][-1]):.3g} nats."
    )
    names = [track["name"] for track in found["tracks"] if track["name"] != track["method"]]
    if names:
        said += f" Further networks of one run, drawn like its first: {', '.join(map(plain_text, names))}."
    if found["elsewhere"]:
        said += f" Began elsewhere and not drawn: {', '.join(map(plain_text, found['elsewhere']))}."
    return said


def _known(value: float | None) -> float:
    """Return a loss as written in JSON, where none stands for one that was not finite."""
    return math.inf if value is None else value


def about_ends(found: dict[str, Any]) -> str:
    """Return what the figure of the ends shows, and what it does not."""
    start, *own = found["residuals"]
    walls = {name: _known(path["barrier"]) for name, path in found["paths"].items()}
    highest = max(walls, key=lambda name: walls[name])
    return (
        f"Where the runs of seed {found['seed']} ended, in the plane of the first two principal components of "
        "their common start and all ends, and the loss straight from one end to the others. No end lies on the "
        f"plane: the start is {start:.2g} away from it and the ends {min(own):.2g} to {max(own):.2g}, so the loss "
        "shown at an end is not its own. At every point BatchNorm's statistics are estimated anew on "
        f"{found['extent']['statistics']} training images; the losses of the table are with each network's own. "
        f"The highest barrier, {walls[highest]:.2g} nats, is on the way to {plain_text(highest)}."
    )


def differences(rows: list[DiagnosisRow]) -> dict[str, Any] | None:
    """Return a table of differences to plain training, None where there is nothing to compare with."""
    columns = (*SHARPNESS, CORRUPTED)
    found = [minus_plain(rows, measure) for measure in columns]
    if not any(found):
        return None
    settings = rows[0].runs[0].found["settings"]
    return {
        "heads": [named(m.name, settings) for m in columns],
        "rows": [
            (plain_text(row.method), [_difference(d.get(row.method)) for d in found])
            for row in rows
            if any(row.method in d for d in found)
        ],
    }


def _difference(value: Difference | None) -> dict[str, Any] | None:
    if value is None:
        return None
    known = value.low is not None and value.high is not None
    shown = f"[{digits(value.low or 0.0, 2)}, {digits(value.high or 0.0, 2)}]" if known else ""
    return {
        "mean": formatting.minus(digits(value.mean, 2, sign=True)),
        "interval": formatting.minus(shown),
        "strong": value.separates,
    }


def _flatter(rows: list[DiagnosisRow]) -> str:
    """Return which methods are flatter than plain by an interval that excludes 0, by SAM's and ASAM's measure."""
    said = []
    for name in (SHARPNESS[0].name, SHARPNESS[2].name):
        measure = next(m for m in SHARPNESS if m.name == name)
        found = {method: d for method, d in minus_plain(rows, measure).items() if d.low is not None}
        if not found:
            continue
        below = [plain_text(m) for m, d in found.items() if d.separates and d.mean < 0]
        above = [plain_text(m) for m, d in found.items() if d.separates and d.mean > 0]
        parts = [f"{', '.join(names)} {word}" for names, word in ((below, "below"), (above, "above")) if names]
        kind = "SAM" if measure is SHARPNESS[0] else "adaptive"
        verdict = f"put {' and '.join(parts)} plain" if parts else "put no method below or above plain"
        said.append(f"In {kind} sharpness, intervals that exclude 0 {verdict}.")
    return " ".join(said)


def reading(rows: list[DiagnosisRow]) -> str:
    """Return in words what differences and rank correlations say, and no more."""
    return " ".join(filter(None, (_flatter(rows), _order(rows))))


def _order(rows: list[DiagnosisRow]) -> str:
    """Return how many measures order the methods as test accuracy does."""
    known = [(m, t) for m in SHARPNESS if (t := agreement(rows, m))]
    if not known:
        return "With fewer than three methods there is no order to compare."
    n = known[0][1].n
    clear = [(m, t) for m, t in known if t.p <= 0.05]
    settings = rows[0].runs[0].found["settings"]
    start = f"Over {n} methods, "
    if not clear:
        return (
            f"{start}none of {len(known)} measures of sharpness orders the methods as test accuracy does, or the "
            "other way round, more closely than chance often would."
        )
    said = [
        f"{named(m.name, settings)} ({'flatter' if t.tau < 0 else 'sharper'} is more accurate, tau {t.tau:+.2f}, "
        f"p {t.p:.2g})"
        for m, t in clear
    ]
    return f"{start}{len(clear)} of {len(known)} measures of sharpness go with test accuracy: {'; '.join(said)}."


def cell(measure: Measure, value: Spread | None) -> tuple[str, str]:
    """Return the mean and the standard deviation as text."""
    if value is None:
        return formatting.NONE, ""
    places = measure.decimals
    shown = digits(value.mean, 3) if places is None else f"{value.mean:,.{places}f}"
    if not value.std:
        return formatting.minus(shown), ""
    std = digits(value.std, 2) if places is None else f"{value.std:.{places}f}"
    return formatting.minus(shown), f"± {std}"


def digits(value: float, count: int, *, sign: bool = False) -> str:
    """Return a number to so many significant digits, without an exponent where it can be read so."""
    if value and not 1e-5 < abs(value) < 1e7:
        return f"{value:{'+' if sign else ''}.{count - 1}e}"
    size = math.floor(math.log10(abs(value))) if value else 0
    rounded = round(value, count - 1 - size)
    return f"{rounded:{'+' if sign else ''}.{max(0, count - 1 - size)}f}"


def tau(value: Agreement | None) -> str:
    """Return a rank correlation and its p-value as text; nothing where there is none."""
    return "" if value is None else formatting.minus(f"tau {value.tau:+.2f}, p {value.p:.2g}")
