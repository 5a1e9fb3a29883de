"""The page of a diagnosis: one HTML file about sharpness and the metric, with its figures as further files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steppe.records import Comparison, load, write_text
from steppe.report import _html, plotting
from steppe.report.comparison.summary import groups, metric_of_all
from steppe.report.diagnosis import conclusions, figures, summary, trajectories
from steppe.report.diagnosis._noise_tolerance import complexity
from steppe.report.diagnosis.conclusions import cell
from steppe.report.diagnosis.summary import MEASURES, METRIC, SHARPNESS, DiagnosedRun, DiagnosisRow, Measure
from steppe.report.diagnosis.wording import Wording
from steppe.report.formatting import plain_text
from steppe.report.metric_text import MetricText
from steppe.tasks.metric import Metric

Drawing = tuple[str, Figure, Figure, str]
"""The name of a figure, the figure, its narrow form, and its caption."""


def write(folder: Path) -> Path:
    """Write ``diagnosis.html`` and its figures into the comparison's folder, and return its path.

    Raises:
        steppe.errors.InputError: The folder is not that of a comparison, or no run of it has been diagnosed.
        steppe.errors.RunError: A file cannot be written.
    """
    comparison = load(folder)
    runs = summary.load_diagnoses(comparison)
    sections: list[dict[str, Any]] = []
    surfaces: list[dict[str, Any]] = []
    for number, group in enumerate(groups(comparison)):
        rows = summary.diagnosis_rows(comparison, group, runs)
        if not rows:
            continue
        drawings = _figures(comparison, group, rows)
        for name, figure, _, _ in drawings:
            plotting.save(figure, comparison.folder / f"diagnosis-{name}{number or ''}.svg")
        surfaces.append(figures.surfaces(rows))
        sections.append(_section(group, rows, drawings) | {"number": len(sections)})
    page = comparison.folder / "diagnosis.html"
    left_out = [plain_text(f"{name}: {reason}") for name, reason in summary.not_measured(comparison)]
    metric = metric_of_all(comparison)
    content = {
        "sections": sections,
        "metric": metric,
        "several": len(sections) > 1,
        "left_out": left_out,
    }
    write_text(page, _html.render("diagnosis.html.j2", comparison, "surface.js", surfaces, **content))
    return page


def terminal(folder: Path) -> list[RenderableType]:
    """Return the tables of a comparison's diagnosis for a terminal, one per data set and network."""
    comparison = load(folder)
    runs = summary.load_diagnoses(comparison)
    tables = [(group, summary.diagnosis_rows(comparison, group, runs)) for group in groups(comparison)]
    return [_table(plain_text(", ".join(group)), rows) for group, rows in tables if rows]


def terminal_runs(runs: list[DiagnosedRun]) -> RenderableType:
    """Return a table for a terminal with a row per run."""
    names = [f"{run.record.method} seed {run.record.seed}" for run in runs]
    values = [{m.name: summary.over_runs([run], m) for m in MEASURES} for run in runs]
    wordings = [Wording(MetricText(Metric.from_dict((run.record.result or {}).get("metric")))) for run in runs]
    return _table(
        "", [DiagnosisRow(*row) for row in zip(names, [[run] for run in runs], values, wordings, strict=True)]
    )


# too wide for a terminal; the page has all
_PAGE_ONLY = ("Worst of {steps} steps", "Filter noise", "Trace", "ECE, %")


def _table(title: str, rows: list[DiagnosisRow]) -> Table:
    measures = [m for m in summary.present(rows) if m.name not in _PAGE_ONLY]
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for measure in measures:
        table.add_column(Text(summary.with_settings(measure.name, rows[0])), justify="right")
    for row in rows:
        cells = [_cell(measure, row)[0] for measure in measures]
        table.add_row(Text(plain_text(row.method)), *map(Text, cells))
    taus = [summary.rank_correlation(rows, m) if m is not METRIC else None for m in measures]
    if any(taus):
        table.add_section()
        cells = [f"tau with {rows[0].wording.text.name}", *(f"{t.tau:+.2f}" if t else "" for t in taus)]
        table.add_row(*(Text(c, style="dim") for c in cells))
    return table


def _cell(measure: Measure, row: DiagnosisRow) -> tuple[str, str]:
    """Return a cell; a metric that is no share has three digits."""
    if measure is METRIC and not row.wording.text.metric.percent:
        measure = replace(measure, decimals=None)
    return cell(measure, row.values[measure.name])


def _section(group: tuple[str, str], rows: list[DiagnosisRow], drawings: list[Drawing]) -> dict[str, Any]:
    first = rows[0].runs[0].diagnosis
    settings = first["settings"]
    levels, measures, wording = figures.levels_of(rows), summary.present(rows), rows[0].wording
    scale = f"{levels.at[0]:.3g} to {levels.at[-1]:.3g}{', logarithmic' if levels.log else ''}"
    return {
        "name": plain_text(", ".join(group)),
        "part": first["part"],
        "which": first["which"],
        "settings": settings,
        "wording": wording,
        "metric": wording.text,
        "has_accuracy": figures.has_accuracy(rows),
        "corruptions": (first["robustness"] or {}).get("origin"),
        "heads": [summary.with_settings(m.name, rows[0]) for m in measures],
        "about": [
            (summary.with_settings(m.name, rows[0]), summary.with_settings(m.about, rows[0])) for m in measures
        ],
        "rows": [(plain_text(r.method), len(r.runs), [_cell(m, r) for m in measures]) for r in rows],
        "taus": [summary.rank_correlation(rows, m) if m is not METRIC else None for m in measures],
        "seeds": max(len(row.runs) for row in rows),
        "sentences": conclusions.sentences(rows),
        "differences": conclusions.differences(rows),
        "figures": [(name, _html.figure(wide, narrow), about) for name, wide, narrow, about in drawings],
        "surfaces": [plain_text(f"{row.method}, seed {row.runs[0].record.seed}") for row in rows],
        "scale": f"{scale}; what is above is cut off",
        "complexity": complexity(rows) if first["complexity"] else None,
    }


def _figures(comparison: Comparison, group: tuple[str, str], rows: list[DiagnosisRow]) -> list[Drawing]:
    """Return name, figure and caption of each figure, in the page's order; "" for a caption of the template."""

    def drawing(name: str, about: str, draw: Callable[..., Figure], *arguments: Any) -> Drawing:
        return name, draw(comparison, *arguments), draw(comparison, *arguments, narrow=True), about

    wording, corrupted = rows[0].wording, rows[0].runs[0].diagnosis["robustness"]
    drawings = [drawing("line", "", figures.lines, rows), drawing("plane", "", figures.planes, rows)]
    if ends := summary.load_cross_run(comparison, group, summary.ENDS):
        about = conclusions.about_endpoints(ends, wording)
        drawings.append(drawing("ends", about, trajectories.ends, ends, wording))
    if paths := summary.load_cross_run(comparison, group, summary.PATHS):
        about = conclusions.about_trajectories(paths, wording)
        drawings.append(drawing("paths", about, trajectories.trajectories, paths, wording))
    if methods := trajectories.with_sharpness(rows):
        drawings.append(drawing("epochs", "", trajectories.over_epochs, methods, wording))
    notes = {m.name: conclusions.tau(summary.rank_correlation(rows, m)) for m in SHARPNESS}
    return [
        *drawings,
        drawing("scatter", "", figures.scatter, rows, notes),
        *([drawing("robustness", "", figures.corruptions, rows)] if corrupted else []),
        drawing("spectrum", "", figures.spectra, rows),
        drawing("filters", "", figures.filters, rows),
    ]
