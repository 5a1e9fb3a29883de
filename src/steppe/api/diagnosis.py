"""``steppe.diagnose``: how flat the minima of a comparison's runs are, as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steppe import hardware
from steppe.analysis import cross_run
from steppe.analysis.diagnose_runs import Request, diagnose_runs, finished_runs
from steppe.analysis.load_run import Which
from steppe.api._arguments import Arguments
from steppe.api._text import rendered
from steppe.api.comparison import ComparisonResult
from steppe.config import Run, user_code
from steppe.errors import InputError
from steppe.report.diagnosis import page
from steppe.training import run as engine


class Diagnosis:
    """The result of `steppe.diagnose`; as text it is the table of the measures.

    Attributes:
        folder: Folder of the comparison, with ``diagnosis.html``.
        runs: All measures of each run by its name, as plain data.
    """

    def __init__(self, folder: Path, runs: dict[str, dict[str, Any]], page_: Path):
        self.folder, self.runs, self.page = folder, runs, page_

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the measures of each run as plain data."""
        return self.runs

    def __str__(self) -> str:
        return rendered(*page.terminal(self.folder), width=160)

    __repr__ = __str__


def diagnose(
    comparison: ComparisonResult | str | Path,
    new_model: Any = None,
    data: Any = None,
    *,
    loss: Any = None,
    metric: Any = None,
    methods: Any = (),
    collate: Callable[[Sequence[Any]], Any] | None = None,
    seconds: float = 8.0,
    which: Which = "last",
    on: str = "val",
    bounds: bool = False,
    again: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Measure the finished runs of a comparison: sharpness, Hessian, landscape, and more where it is defined.

    Args:
        comparison: What `steppe.compare` returned, or its folder.
        new_model, data, loss, metric, methods: Of a folder, the objects that the comparison was made with, if they
            were no names: a record alone runs no code.
        collate: As in `steppe.compare`.
        seconds: Time for each run; it sets the number of samples.
        which: The weights: 'last' or 'best' epoch.
        on: The samples: 'val' or 'train'.
        bounds: Compute PAC-Bayes bounds too.
        again: Measure anew what has been measured.
        progress: Called with a line for each run.

    Raises:
        InputError: The folder is no comparison, no run has finished, or an object is missing or another one.
    """
    folder = comparison.folder if isinstance(comparison, ComparisonResult) else Path(comparison)
    objects = dict(comparison._objects) if isinstance(comparison, ComparisonResult) else {}
    if on not in ("val", "train"):
        raise InputError(f"on is {on!r}; give 'val' or 'train'")
    homes = finished_runs(folder)
    passed = Arguments()
    passed.methods(methods)
    objects |= passed.objects
    with user_code.registered(objects):
        objects |= _under_recorded_names(
            [engine.read_run(home) for home in homes], new_model, data, loss, metric, collate
        )
    request = Request(seconds, which, on, None, bounds, again)
    lines = progress or (lambda line: None)
    with user_code.registered(objects):
        hardware.keep_freed_memory()
        results = diagnose_runs(homes, request, lambda measure: None, lines)
        cross_run.write(folder, results, request.as_dict(), on, again, lambda measure: None)
        runs = {engine.read_run(home).title: result for home, result in results.items()}
    return Diagnosis(folder, runs, page.write(folder))


def _under_recorded_names(
    runs: Sequence[Run], new_model: Any, data: Any, loss: Any, metric: Any, collate: Any
) -> dict[tuple[str, str], Any]:
    """Return the objects under the names that the runs' records give them."""
    objects: dict[tuple[str, str], Any] = {}
    models = new_model if isinstance(new_model, dict) else {run.model: new_model for run in runs}
    if new_model is not None and not isinstance(new_model, dict) and len(models) > 1:
        raise InputError(f"the comparison has networks {', '.join(models)}; give new_model as a mapping of these")
    objects |= {("model", name): value for name, value in models.items() if value is not None}
    for run in runs:
        if data is not None and ("dataset", run.dataset) not in objects:
            arguments = Arguments()
            name = arguments.dataset(data, run.dataset, run.task, collate)
            objects["dataset", run.dataset] = arguments.objects["dataset", name]
        if loss is not None and run.loss:
            objects["loss", run.loss] = loss
        if metric is not None and run.metric:
            name = run.metric.removesuffix(":lower").removesuffix(":higher")
            objects["metric", name] = metric[0] if isinstance(metric, tuple) else metric
    return objects
