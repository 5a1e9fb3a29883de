"""The command ``steppe tune``: search, print the answer, and write it beside the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steppe import hardware, records
from steppe.config import Run
from steppe.experiments.tuning.plot import curve
from steppe.experiments.tuning.result import result_as_dict, table, verdict
from steppe.experiments.tuning.search import TuningBudget, search
from steppe.experiments.tuning.space import space
from steppe.report.plotting import save
from steppe.training import run as engine

ANSWER = "tune.json"


def run(
    asked: Run,
    settings: Sequence[str],
    budget: TuningBudget,
    out: Path,
    as_json: bool,
    command: str,
    console: Console,
) -> int:
    """Search, and write ``tune.json`` and the curve as SVG and PNG into ``out``; return the exit code.

    Raises what `space` and `search` raise.
    """
    ranges = space(asked.method, settings)
    watching = Console(stderr=True) if as_json else console
    hardware.keep_freed_memory()
    images = engine.load_data(asked)
    shown = ", ".join(f"{r.name} from {r.low:g} to {r.high:g}" for r in ranges)
    watching.print(f"{asked.method}: {shown}; up to {budget.trials} trials", highlight=False, markup=False)
    with watching.status("starting") as status:

        def listen(one: Run, news: engine.TrainingStatus | str) -> None:
            name = f"{one.method} seed {one.seed}"
            if isinstance(news, str):
                watching.print(f"{name}: {news}", highlight=False, markup=False, soft_wrap=True)
            else:
                status.update(f"{name}: epoch {news.epoch}, loss {news.loss:.3f}")

        found = search(asked, ranges, budget, out, images, listen)
    content = result_as_dict(found) | {"command": command, "environment": hardware.environment()}
    records.write_json(out / ANSWER, content)
    drawn = curve(found)
    for suffix in ("svg", "png"):
        save(drawn, out / f"tune.{suffix}")
    if as_json:
        print(json.dumps(content, indent=1))
        return 0
    console.print(table(found))
    for sentence in verdict(found):
        console.print(sentence, highlight=False, markup=False)
    console.print(f"\nbest: {found.best.method}\ncurve: {out / 'tune.svg'}", highlight=False, markup=False)
    return 0
