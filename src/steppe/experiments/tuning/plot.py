"""The sensitivity curve: the validation metric against each setting, with plain training as a line."""

from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from steppe import hardware, records
from steppe.experiments.tuning.result import result_as_dict
from steppe.experiments.tuning.search import BASELINE, Candidate, TuningResult
from steppe.experiments.tuning.space import Range
from steppe.records import Comparison
from steppe.report.metric_text import MetricText
from steppe.report.plotting import label, save, style_axes
from steppe.report.style import Style, styles


def curve(result: TuningResult) -> Figure:
    """Return a panel per setting, like figures 3, 7 and 8 of the RWP paper.

    A point is the mean over a trial's seeds, with a bar from the lowest to the highest. The best trial is larger.
    A pruned trial is hollow, at its value when it was pruned. If one setting is searched, a line joins the
    completed trials. The band of plain goes from its lowest to its highest seed.
    """
    method = result.run.label
    listed = {name: {"summary": "", "resolved": "", "controls": []} for name in (BASELINE, method)}
    style = styles(Comparison(Path(), "", "", {}, {}, {}, listed, []))
    figure = Figure(figsize=(6.4 * len(result.ranges), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(result.ranges), squeeze=False, sharey=True).flat
    for panel, setting in zip(panels, result.ranges, strict=True):
        text = MetricText(result.metric)
        style_axes(panel, setting.name, text.caption(f"{method}: validation {text.name} after the last epoch"))
        _plain(panel, result.baseline, style[BASELINE], text.scale)
        _trials(panel, result, setting, style[method])
        if setting.log:
            _logarithmic(panel)
        for entry in panel.legend(frameon=False, fontsize=9).get_texts():
            entry.set_parse_math(False)
    return figure


def _plain(panel: Axes, baseline: Candidate, style: Style, scale: float) -> None:
    values = [scale * a for a in baseline.accuracies]
    panel.axhspan(min(values), max(values), color=style.light, alpha=0.10, linewidth=0)
    panel.axhline(fmean(values), color=style.light, linewidth=style.width * 0.75, label=label(BASELINE))


def _trials(panel: Axes, result: TuningResult, setting: Range, style: Style) -> None:
    scale = MetricText(result.metric).scale
    order = sorted(result.trials, key=lambda t: t.values[setting.name])
    complete = [t for t in order if t.state == "complete"]
    pruned = [t for t in order if t.state == "pruned" and t.accuracies]

    def points(trials: list[Candidate], **options: Any) -> None:
        x, y = [t.values[setting.name] for t in trials], [scale * t.accuracy for t in trials]
        common: dict[str, Any] = {"linestyle": "none", "markersize": 4, "color": style.light}
        panel.plot(x, y, marker=style.marker or "o", **common | options)

    x, y = [t.values[setting.name] for t in complete], [scale * t.accuracy for t in complete]
    below = [v - scale * min(t.accuracies) for v, t in zip(y, complete, strict=True)]
    above = [scale * max(t.accuracies) - v for v, t in zip(y, complete, strict=True)]
    panel.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=style.light, elinewidth=1.3)
    line = "-" if len(result.ranges) == 1 else "none"
    points(complete, linestyle=line, linewidth=style.width * 0.75, label=label(result.run.label))
    if pruned:
        points(pruned, fillstyle="none", alpha=0.6, label="pruned")
    points([result.best], markersize=9, label=f"best, {result.best.values[setting.name]:g}")


def _logarithmic(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.tick_params(which="minor", length=0)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def write(result: TuningResult, out: Path, command: str) -> dict[str, Any]:
    """Write ``tune.json`` and the curve as SVG and PNG into a folder; return the content of the former."""
    content = result_as_dict(result) | {"command": command, "environment": hardware.environment()}
    records.write_json(out / "tune.json", content)
    figure = curve(result)
    for suffix in ("svg", "png"):
        save(figure, out / f"tune.{suffix}")
    return content
