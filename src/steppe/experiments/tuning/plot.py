"""The sensitivity curve: validation accuracy against each setting, with plain training as a line."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from steppe.experiments.tuning.search import BASELINE, Candidate, TuningResult
from steppe.experiments.tuning.space import Range
from steppe.records import Comparison
from steppe.report.plotting import label, style_axes
from steppe.report.style import Style, styles


def curve(found: TuningResult) -> Figure:
    """Return a panel per setting, in the manner of figures 3, 7 and 8 of the RWP paper.

    A point is a trial, the mean over its seeds, its bar from the lowest to the highest; the best one is larger, a
    trial that was pruned is hollow, at the accuracy it was pruned at. Where one setting is searched a line joins
    the trials that were completed. The band of plain goes from its lowest to its highest seed.
    """
    method = found.run.method
    listed = {name: {"summary": "", "resolved": "", "controls": []} for name in (BASELINE, method)}
    look = styles(Comparison(Path(), "", "", {}, {}, {}, listed, []))
    figure = Figure(figsize=(6.4 * len(found.ranges), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found.ranges), squeeze=False, sharey=True).flat
    for panel, setting in zip(panels, found.ranges, strict=True):
        style_axes(panel, setting.name, f"{method}: validation accuracy after the last epoch, %")
        _plain(panel, found.baseline, look[BASELINE])
        _trials(panel, found, setting, look[method])
        if setting.log:
            _logarithmic(panel)
        shown = panel.legend(frameon=False, fontsize=9)
        for entry in shown.get_texts():
            entry.set_parse_math(False)
    return figure


def _plain(panel: Axes, baseline: Candidate, style: Style) -> None:
    values = [100 * a for a in baseline.accuracies]
    panel.axhspan(min(values), max(values), color=style.light, alpha=0.10, linewidth=0)
    panel.axhline(fmean(values), color=style.light, linewidth=style.width * 0.75, label=label(BASELINE))


def _trials(panel: Axes, found: TuningResult, setting: Range, style: Style) -> None:
    order = sorted(found.trials, key=lambda t: t.values[setting.name])
    done = [t for t in order if t.state == "complete"]
    x = [t.values[setting.name] for t in done]
    y = [100 * t.accuracy for t in done]
    bars = [[v - 100 * min(t.accuracies) for v, t in zip(y, done, strict=True)]]
    bars.append([100 * max(t.accuracies) - v for v, t in zip(y, done, strict=True)])
    panel.errorbar(x, y, yerr=bars, fmt="none", ecolor=style.light, elinewidth=1.3)
    panel.plot(
        x,
        y,
        color=style.light,
        linestyle="-" if len(found.ranges) == 1 else "none",
        linewidth=style.width * 0.75,
        marker=style.marker or "o",
        markersize=4,
        label=label(found.run.method),
    )
    cut = [t for t in order if t.state == "pruned" and t.accuracies]
    if cut:
        panel.plot(
            [t.values[setting.name] for t in cut],
            [100 * t.accuracy for t in cut],
            color=style.light,
            linestyle="none",
            marker=style.marker or "o",
            markersize=4,
            fillstyle="none",
            alpha=0.6,
            label="pruned",
        )
    best = found.best
    panel.plot(
        [best.values[setting.name]],
        [100 * best.accuracy],
        color=style.light,
        linestyle="none",
        marker=style.marker or "o",
        markersize=9,
        label=f"best, {best.values[setting.name]:g}",
    )


def _logarithmic(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.tick_params(which="minor", length=0)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
