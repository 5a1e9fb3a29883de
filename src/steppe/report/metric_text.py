"""How a metric is written: its scale, unit and direction, in tables, axes and sentences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from steppe.report.formatting import plain_text
from steppe.tasks.metric import ACCURACY, Metric

_MOST_DECIMALS = 12


@dataclass(frozen=True)
class MetricText:
    """The texts about one metric, or about the metrics of several data sets where ``several``.

    Pages about accuracy leave the direction out: everybody knows it.
    """

    metric: Metric = ACCURACY
    several: bool = False

    @property
    def name(self) -> str:
        """Return the name in one line, such as RMSE."""
        return "metric" if self.several else plain_text(self.metric.name) or "metric"

    @property
    def title(self) -> str:
        """Return the name as the beginning of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def is_accuracy(self) -> bool:
        """Return whether this is accuracy in percent, higher is better."""
        return not self.several and self.metric == ACCURACY

    @property
    def scale(self) -> float:
        """Return the factor from a recorded value to the printed one."""
        return 100.0 if self.metric.percent else 1.0

    @property
    def unit(self) -> str:
        """Return the printed unit: %, that of the metric, or an empty string."""
        if self.several:
            return ""
        return "%" if self.metric.percent else plain_text(self.metric.unit)

    @property
    def after(self) -> str:
        """Return the unit after a value, such as `` mm``."""
        return self.unit and f" {self.unit}"

    def value(self, recorded: float | None) -> str:
        """Return a recorded value by itself: 93.12%, or four digits with the unit."""
        if recorded is None:
            return "not finite"
        return f"{recorded:.2%}" if self.metric.percent else f"{recorded:.4g}{self.after}"

    @property
    def points(self) -> str:
        """Return the unit of a difference: points of percent, else that of the value."""
        return "points" if self.unit == "%" else self.unit

    @property
    def direction(self) -> str:
        """Return ``lower is better``; for accuracy and for several metrics an empty string."""
        if self.is_accuracy or self.several:
            return ""
        return "higher is better" if self.metric.higher else "lower is better"

    @property
    def highest(self) -> str:
        """Return what the best value is: highest or lowest."""
        return "best" if self.several else "highest" if self.metric.higher else "lowest"

    @property
    def largest(self) -> str:
        """Return what the best single value is: largest or smallest."""
        return "best" if self.several else "largest" if self.metric.higher else "smallest"

    def with_unit(self, text: str) -> str:
        """Return ``text, %``, or the text alone without a unit."""
        return f"{text}, {self.unit}" if self.unit else text

    def caption(self, text: str) -> str:
        """Return a text with unit and direction: ``Test RMSE, mm (lower is better)``."""
        return self.with_unit(text) + (f" ({self.direction})" if self.direction else "")

    @property
    def differences(self) -> str:
        """Return what differences are: ``in percentage points``, ``in mm, below 0 is better``."""
        if self.several:
            return "in the unit of each metric"
        points = "in percentage points" if self.unit == "%" else f"in {self.unit}" if self.unit else ""
        if self.is_accuracy:
            return points
        better = f"{'above' if self.metric.higher else 'below'} 0 is better"
        return f"{points}, {better}" if points else f"of the {self.name}, {better}"

    def key(self, part: str = "") -> str:
        """Return the key of the value in the records: ``val_accuracy`` for accuracy, else ``val_metric``."""
        name = "accuracy" if self.metric == ACCURACY else "metric"
        return f"{part}_{name}" if part else name

    def gain(self, value: float) -> float:
        """Return a value or difference with the sign that makes more of it better."""
        return value if self.metric.higher else -value

    def best(self, values: Iterable[float]) -> float:
        """Return the best of one or more values."""
        return max(values, key=self.gain)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of one or more values."""
        return min(values, key=self.gain)


ACCURACY_TEXT = MetricText()


def text_of(metrics: Iterable[Metric]) -> MetricText:
    """Return the texts about the metrics of a comparison's data sets: one for all, or several."""
    different = list(dict.fromkeys(metrics))
    return MetricText(different[0]) if len(different) == 1 else MetricText(several=bool(different))


def caption(title: str, text: MetricText) -> str:
    """Return a table's title with its metric, unless that is accuracy."""
    return title if text.is_accuracy else f"{title}: {text.caption(f'test {text.name}')}"


def csv_heads(texts: Iterable[MetricText]) -> list[str]:
    """Return the heads of a CSV file's columns about the metric; none if all are accuracies."""
    return [] if all(text.is_accuracy for text in texts) else ["metric", "unit", "better"]


def csv_cells(text: MetricText, texts: Iterable[MetricText]) -> list[str]:
    """Return a row's cells of these columns."""
    unit = "percent" if text.metric.percent else text.unit
    return [text.name, unit, "higher" if text.metric.higher else "lower"] if csv_heads(texts) else []


def decimals(means: Sequence[float], deviations: Sequence[float]) -> int:
    """Return how many decimals of a table's values show two digits of their spread.

    The spread is the median of the standard deviations over seeds; without any, a tenth of the range of the means;
    without a range, a hundredth of the largest value.
    """
    spreads = [v for v in deviations if v > 0 and math.isfinite(v)]
    finite = [v for v in means if math.isfinite(v)]
    scale = median(spreads) if spreads else 0.0
    if not scale and finite:
        scale = (max(finite) - min(finite)) / 10 or max(map(abs, finite)) / 100
    return min(max(0, 1 - math.floor(math.log10(scale))), _MOST_DECIMALS) if scale else 2
