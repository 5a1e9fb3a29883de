"""Progress of a call: a live table in a notebook, one line in a terminal, nothing in a log."""

from __future__ import annotations

import contextlib
import html as escape
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from steppe import records
from steppe.errors import InputError
from steppe.experiments.run_lock import ComparisonRun, News
from steppe.report.comparison import summary
from steppe.report.formatting import interval, mean, number
from steppe.training.run import TrainingStatus

_PAUSE = 0.5  # seconds between two updates


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class Live:
    """Shows how far a comparison is; a context manager whose `update` takes each run's news."""

    def __init__(self, folder: Path, total: int, show: bool):
        self.folder, self.total, self.done = folder, total, 0
        self.notebook = show and in_notebook()
        self.terminal = show and not self.notebook and sys.stderr.isatty()
        self._display: Any = None
        self._updated = 0.0

    def __enter__(self) -> Self:
        if self.notebook and self.total:
            from IPython.display import HTML, display

            show: Any = display
            page: Any = HTML
            self._display = show(page(f"<p>0 of {self.total} runs</p>"), display_id=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.terminal and self.total:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if self._display is not None:
            self._refresh()

    def update(self, job: ComparisonRun, news: News) -> None:
        """Show a run's status, result or error."""
        ended = not isinstance(news, TrainingStatus)
        self.done += ended
        if time.monotonic() - self._updated < _PAUSE:
            return
        self._updated = time.monotonic()
        if self.terminal:
            epoch = f", epoch {news.epoch}" if isinstance(news, TrainingStatus) else ""
            print(
                f"\r\x1b[K{self.done} of {self.total} runs: {job.name}{epoch}", end="", file=sys.stderr, flush=True
            )
        elif self._display is not None and ended:
            self._refresh()

    def _refresh(self) -> None:
        from IPython.display import HTML

        page: Any = HTML
        with contextlib.suppress(InputError):  # a record that a worker is writing
            rows = summary.rows(records.load(self.folder))
            self._display.update(page(html(rows, [f"{self.done} of {self.total} runs"])))


def html(rows: Sequence[summary.ResultRow], notes: Sequence[str]) -> str:
    """Return the table as HTML, with notes below it."""
    lines = []
    for row in rows:
        d = row.difference
        cells = [
            row.method,
            ""
            if row.last is None
            else number(row.last.mean, row.decimals)
            + ("" if row.last.std is None else f" ± {number(row.last.std, row.decimals)}"),
            str(row.ok),
            ""
            if d is None
            else mean(d, row.decimals) + ("" if d.low is None else f" {interval(d, row.decimals)}"),
        ]
        lines.append("<tr>" + "".join(f"<td>{escape.escape(cell)}</td>" for cell in cells) + "</tr>")
    title = rows[0].text.caption(f"test {rows[0].text.name}") if rows else "test"
    heads = ("method", title, "seeds", "minus plain")
    head = "".join(f"<th>{escape.escape(text)}</th>" for text in heads)
    below = "".join(f"<p>{escape.escape(note)}</p>" for note in notes)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>{below}"
