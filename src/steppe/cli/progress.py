"""Progress of runs: bars on a terminal, plain lines in a log."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TaskProgressColumn, TextColumn

from steppe.report.formatting import count
from steppe.report.metric_text import MetricText
from steppe.tasks.metric import Metric
from steppe.training.run import TrainingStatus


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Bars:
    """Progress bars within a context, on a terminal only."""

    def __init__(self, console: Console, *columns: ProgressColumn):
        self.console = console
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()


class Display(_Bars):
    """Show the progress of ``total`` runs; a context manager that is updated with each run's news."""

    def __init__(self, total: int, console: Console):
        columns = TextColumn("{task.description}"), BarColumn(bar_width=18), TextColumn("{task.fields[text]}")
        super().__init__(console, *columns)
        self.total, self.done = total, 0
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._all = self._bars.add_task("all runs", total=total, text=f"0 of {total} done")

    def update(self, name: str, news: TrainingStatus | dict[str, Any] | str) -> None:
        """Show a run's status, result or error message."""
        if isinstance(news, TrainingStatus):
            self._show_status(name, news)
        else:
            self._show_end(name, news)

    def _show_status(self, name: str, status: TrainingStatus) -> None:
        value = "" if status.accuracy is None else f"acc {status.accuracy:.1%}  "
        if status.metric is not None and status.val_accuracy is not None:
            metric = MetricText(Metric.from_dict(status.metric))
            value = f"val {metric.name} {metric.value(status.val_accuracy)}  "
        text = (
            f"epoch {status.epoch}  loss {status.loss:.3f}  {value}"
            f"{status.images_per_second:,.0f} {status.samples}/s  {duration(status.seconds_left)} left"
        )
        if self.console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=1.0, text="")
            self._bars.update(self._tasks[name], completed=status.share, text=text)
        elif status.val_accuracy is not None and int(status.share * 10) > self._tenths.get(name, -1):
            self._tenths[name] = int(status.share * 10)
            self.console.print(f"{name}: {status.share:4.0%}  {text}", soft_wrap=True, highlight=False)

    def _show_end(self, name: str, news: dict[str, Any] | str) -> None:
        self.done += 1
        task = self._tasks.pop(name, None)
        if task is not None:
            self._bars.remove_task(task)
        self._bars.update(self._all, completed=self.done, text=f"{self.done} of {self.total} done")
        if isinstance(news, str):
            text = f"stopped: {news}"
        elif news["status"] == "ok":
            metric = MetricText(Metric.from_dict(news.get("metric")))
            test = metric.value(news["test"]["last"][metric.key()])
            after = f"after {count(news['epochs'], 'epoch')}, {duration(news['seconds'])}"
            text = f"test {metric.name} {test} {after}"
        else:
            text = f"failed: {news['message']}"
        self.console.print(
            f"[{self.done}/{self.total}] {name}: {text}", soft_wrap=True, highlight=False, markup=False
        )


class Decoding(_Bars):
    """Show the progress of decoding a data set's images, which is cached: later runs do not decode.

    A context manager that is called with (done, total). In a log it prints every ``pause`` seconds.
    """

    def __init__(self, console: Console, pause: float = 5.0):
        super().__init__(console, TextColumn("decoding images"), BarColumn(bar_width=30), TaskProgressColumn())
        self.pause, self._printed = pause, time.monotonic()
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` images are decoded."""
        if self._task is None:
            self._task = self._bars.add_task("", total=total)
        self._bars.update(self._task, completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self._printed > self.pause:
            self._printed = time.monotonic()
            self.console.print(f"decoding images: {done / max(total, 1):.0%}", highlight=False)
