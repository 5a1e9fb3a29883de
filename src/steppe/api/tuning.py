"""``steppe.tune``: the best settings of a method on a network and data of the user's, as one call."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from steppe.api import _arguments
from steppe.api._arguments import Arguments
from steppe.api._text import rendered
from steppe.config import Run, TuningBudget, user_code
from steppe.errors import InputError, unknown
from steppe.experiments.tuning import TuningResult, search, space
from steppe.experiments.tuning.plot import write
from steppe.experiments.tuning.result import difference, result_as_dict, table, verdict
from steppe.training.run import load_data


class TunedMethod:
    """The result of `steppe.tune`; as text it is the table of the trials with the answer.

    Attributes:
        folder: Folder of the search, its runs, ``tune.json`` and the curve ``tune.svg``.
        result: All trials, the baseline and the values on fresh seeds.
    """

    def __init__(self, folder: Path, result: TuningResult):
        self.folder, self.result = folder, result

    def best(self) -> str:
        """Return the method with the best settings, as text that `steppe.compare` takes."""
        return self.result.best.method

    @property
    def values(self) -> dict[str, float]:
        """The best settings by name."""
        return dict(self.result.best.values)

    def difference(self) -> Any:
        """Return the best setting minus plain on fresh seeds, with its interval; shares in percentage points."""
        return difference(self.result)

    def to_dict(self) -> dict[str, Any]:
        """Return the search as plain data."""
        return result_as_dict(self.result)

    def __str__(self) -> str:
        return "\n".join([rendered(table(self.result)), *verdict(self.result), f"best: {self.best()}"])

    __repr__ = __str__


def tune(
    new_model: Any,
    data: Any,
    method: Any,
    settings: str | Iterable[str] | Mapping[str, tuple[float, float]] = (),
    *,
    trials: int = 20,
    seconds: float | None = None,
    seeds: int = 1,
    confirm: int = 3,
    pruner: str = "median",
    loss: Any = None,
    metric: Any = None,
    task: str = "",
    optimizer: Any = None,
    lr: float | None = None,
    optim: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    collate: Callable[[Sequence[Any]], Any] | None = None,
    split: Mapping[str, Any] | None = None,
    name: str = "",
    out: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> TunedMethod:
    """Search settings of a method on the validation samples, confirm the best on fresh seeds, return the answer.

    Called again with the same ``out``, it goes on. Needs ``pip install 'steppe[tune]'``.

    Args:
        new_model, data, loss, metric, task, optimizer, lr, optim, epochs, batch, collate, split, name: As in
            `steppe.compare`.
        method: A method, or its name with settings.
        settings: Settings to search: names such as 'rho', 'rho=0.01..0.5', several in a list, or a mapping of
            names to (low, high). By default the method's main one.
        trials: Number of values to try.
        seconds: Time limit for everything; no limit if not given.
        seeds: Runs per trial, each with another seed.
        confirm: Number of fresh seeds on which the best setting and plain are trained at the end.
        pruner: Which trials stop early: 'median', 'halving' or 'none'.
        out: Folder of the search; a temporary one, removed with the result, if not given.
        seed: First seed.
        progress: Called with a line about the end of each run.
        options: Other fields of `steppe.config.Run`.

    Raises:
        InputError: As `steppe.compare`, and for settings that the method does not have.
    """
    arguments = Arguments()
    for key in options:
        if key not in Run.__dataclass_fields__:
            raise unknown("option", key, Run.__dataclass_fields__)
    models = arguments.models(new_model)
    if len(models) != 1:
        raise InputError(f"new_model names {len(models)} networks; tune on one of them")
    ranges: Any = [settings] if isinstance(settings, str) else settings
    if isinstance(ranges, Mapping):
        ranges = [f"{key}={low:g}..{high:g}" for key, (low, high) in ranges.items()]
    (chosen,) = arguments.methods([method])
    values: dict[str, Any] = {
        "model": models[0],
        "dataset": arguments.dataset(data, name, task, collate),
        "loss": "" if loss is None else arguments.name("loss", loss),
        "metric": arguments.metric(metric),
        "task": task,
        "optim": _arguments.optim_of(arguments, optimizer, lr, optim),
        "data": _arguments.data_of(split, isinstance(data, str)),
        "seed": seed,
        **({} if epochs is None else {"epochs": epochs}),
        **_arguments.batch_of(data, batch),
        **options,
    }
    folder = Path(tempfile.mkdtemp(prefix="steppe-") if out is None else out)

    def report(run: Run, news: Any) -> None:
        if progress is not None and isinstance(news, str):
            progress(f"{run.title}: {news}")

    with user_code.registered(arguments.objects):
        run = Run(method=chosen, **values)
        budget = TuningBudget(trials, seconds, seeds, confirm, cast(Any, pruner))
        result = search(run, space(run.method, list(ranges)), budget, folder, load_data(run), report)
        write(result, folder, f"steppe.tune(..., out={str(folder)!r})")
    tuned = TunedMethod(folder, result)
    if out is None:
        weakref.finalize(tuned, shutil.rmtree, folder, ignore_errors=True)
    return tuned
