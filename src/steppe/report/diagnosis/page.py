"""The page of a diagnosis: is it flatter, and does that go with accuracy? One HTML file, figures beside it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steppe.records import Comparison, load, write_text
from steppe.report.comparison import _template_context, figures
from steppe.report.comparison.page import embedded
from steppe.report.comparison.summary import Spread, groups
from steppe.report.diagnosis import figures as diagnosis_figures
from steppe.report.diagnosis import surface_3d, trajectories
from steppe.report.diagnosis._noise_tolerance import complexity
from steppe.report.diagnosis.conclusions import (
    ABOUT_EPOCHS,
    CAUTION,
    about_ends,
    about_paths,
    cell,
    differences,
    reading,
    tau,
)
from steppe.report.diagnosis.summary import (
    ACCURACY,
    ENDS,
    MEASURES,
    PATHS,
    SHARPNESS,
    Diagnosed,
    DiagnosisRow,
    Measure,
    agreement,
    diagnosed,
    diagnosis_rows,
    named,
    together,
)
from steppe.report.formatting import minus, plain_text

_REPORT = Path(__file__).parents[1]


def write(folder: Path) -> Path:
    """Write ``diagnosis.html`` into the comparison's folder, its figures beside it, and return its path.

    Raises:
        steppe.errors.InputError: The folder is not that of a comparison, or no run of it has been diagnosed.
        steppe.errors.RunError: A file cannot be written.
    """
    comparison = load(folder)
    runs = diagnosed(comparison)
    sections: list[dict[str, Any]] = []
    surfaces: list[dict[str, Any]] = []
    for number, group in enumerate(groups(comparison)):
        rows = diagnosis_rows(comparison, group, runs)
        if not rows:
            continue
        drawn = _figures(comparison, group, rows)
        for name, figure, _ in drawn:
            figures.save(figure, comparison.folder / f"diagnosis-{name}{number or ''}.svg")
        surfaces.append(surface_3d.surfaces(rows))
        sections.append(_section(group, rows, drawn) | {"number": len(sections)})
    page = comparison.folder / "diagnosis.html"
    environment = Environment(
        loader=FileSystemLoader(_REPORT / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    script = (_REPORT / "static" / "surface.js").read_text(encoding="utf-8")
    html = environment.get_template("diagnosis.html.j2").render(
        **_template_context.header(comparison),
        sections=sections,
        several=len(sections) > 1,
        css=Markup((_REPORT / "static" / "page.css").read_text(encoding="utf-8")),
        caution=CAUTION,
        minus=minus,
        script=Markup(script),
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        data=embedded(surfaces),
    )
    write_text(page, html)
    return page


def terminal(folder: Path) -> list[RenderableType]:
    """Return the tables of a comparison's diagnosis for a terminal, one per data set and network."""
    comparison = load(folder)
    runs = diagnosed(comparison)
    found: list[RenderableType] = []
    for group in groups(comparison):
        rows = diagnosis_rows(comparison, group, runs)
        if rows:
            found.append(_table(plain_text(", ".join(group)), rows))
    return found


def one(runs: list[Diagnosed]) -> RenderableType:
    """Return a table of single runs for a terminal."""
    rows = [
        DiagnosisRow(f"{r.record.method} seed {r.record.seed}", [r], {m.name: _single(m, r) for m in MEASURES})
        for r in runs
    ]
    return _table("", rows)


def _single(measure: Measure, run: Diagnosed) -> Spread | None:
    value = measure.of(run)
    return None if value is None else Spread(value, None, 1)


# what fits a terminal; the page has all
_WIDE = ("Worst of {steps} steps", "Filter noise", "Trace", "ECE, %")
_NARROW = tuple(m for m in MEASURES if m.name not in _WIDE)


def _table(title: str, rows: list[DiagnosisRow]) -> Table:
    settings = rows[0].runs[0].found["settings"]
    shown = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("method", no_wrap=True)
    for measure in _NARROW:
        shown.add_column(Text(named(measure.name, settings)), justify="right")
    for row in rows:
        cells = [cell(measure, row.values[measure.name])[0] for measure in _NARROW]
        shown.add_row(Text(plain_text(row.method)), *(Text(c) for c in cells))
    taus = [agreement(rows, m) if m is not ACCURACY else None for m in _NARROW]
    if any(taus):
        shown.add_section()
        cells = [f"{t.tau:+.2f}" if t else "" for t in taus]
        shown.add_row(Text("tau with accuracy", style="dim"), *(Text(c, style="dim") for c in cells))
    return shown


def _section(
    group: tuple[str, str], rows: list[DiagnosisRow], drawn: list[tuple[str, Figure, str]]
) -> dict[str, Any]:
    first = rows[0].runs[0].found
    settings = first["settings"]
    return {
        "name": plain_text(", ".join(group)),
        "samples": settings["samples"],
        "part": first["part"],
        "which": first["which"],
        "heads": [named(m.name, settings) for m in MEASURES],
        "about": [(named(m.name, settings), named(m.about, settings)) for m in MEASURES],
        "rows": [
            (plain_text(row.method), len(row.runs), [cell(m, row.values[m.name]) for m in MEASURES])
            for row in rows
        ],
        "taus": [agreement(rows, m) if m is not ACCURACY else None for m in MEASURES],
        "reading": reading(rows),
        "differences": differences(rows),
        "figures": [(name, Markup(figures.inline(f)), plain_text(about)) for name, f, about in drawn],
        "surfaces": surface_3d.names(rows),
        "scale": surface_3d.scale_said(rows),
        "complexity": complexity(rows),
    }


def _figures(
    comparison: Comparison, group: tuple[str, str], rows: list[DiagnosisRow]
) -> list[tuple[str, Figure, str]]:
    found = rows[0].runs[0].found
    notes = {m.name: tau(agreement(rows, m)) for m in SHARPNESS}
    drawn = [
        (
            "line",
            diagnosis_figures.lines(comparison, rows),
            "Loss and accuracy along one random direction. Its noise is the same for every run, and each network"
            " moves in proportion to its own filters: 1 is a change as large as the weights. Mean over seeds, "
            "band from the lowest to the highest. A wide, low valley is what is meant by flat.",
        ),
        (
            "plane",
            diagnosis_figures.planes(comparison, rows),
            "Loss on a random plane through one network of each method (the cross), on one scale of colour; "
            "darkest is above it. BatchNorm's running statistics stay those of the network.",
        ),
        (
            "scatter",
            diagnosis_figures.scatter(comparison, rows, notes),
            "Test accuracy against each measure of sharpness, a point per run. If flatness went with accuracy, "
            "the points would fall from upper left to lower right, and tau would be near -1.",
        ),
        (
            "robustness",
            diagnosis_figures.corruptions(comparison, rows),
            "Accuracy under common corruption; whiskers and bands go from the lowest to the highest seed. "
            f"Corruptions: {found['robustness']['origin']}, from the images measured; generated ones are not "
            "those of CIFAR-10-C and compare with no published number.",
        ),
        (
            "spectrum",
            diagnosis_figures.spectra(comparison, rows),
            f"How the Hessian's eigenvalues are spread, estimated by {found['settings']['lanczos']} steps of the "
            "Lanczos iteration from one random vector, each mass drawn as a Gaussian of a hundredth of the axis; "
            "mean over seeds, on a logarithmic scale. The tall peak is the many directions in which nothing "
            "bends; a flatter network ends further left.",
        ),
        (
            "filters",
            diagnosis_figures.filters(comparison, rows),
            "How the norms of filters are distributed, all seeds together. The RWP paper reads a narrower "
            "distribution as filters that are used more evenly.",
        ),
    ]
    over = trajectories.over_epochs(comparison, rows)
    if over is not None:
        drawn.insert(2, ("epochs", over, ABOUT_EPOCHS))
    ways = together(comparison, group, PATHS)
    if ways is not None:
        drawn.insert(2, ("paths", trajectories.trajectories(comparison, ways), about_paths(ways)))
    places = together(comparison, group, ENDS)
    if places is not None:
        drawn.insert(2, ("ends", trajectories.ends(comparison, places), about_ends(places)))
    return drawn
