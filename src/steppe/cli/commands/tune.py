"""``steppe tune``: search a method's settings, and write the answer beside the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_images, print_text
from steppe.cli.options import add_config, add_fields, configuration, make
from steppe.config import Run, TuningBudget
from steppe.errors import InputError

if TYPE_CHECKING:
    from steppe.data.dataset import DataSet
    from steppe.training.run import TrainingStatus


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--settings", type=str, nargs="+", default=[], help="settings to search: NAME or NAME=LOW..HIGH"
    )
    add_fields(parser, TuningBudget)
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the answer as JSON")
    add_config(parser, Run, "out/tune", "folder of the search and its runs")


def run(options: Namespace, command: str) -> int:
    """Search; print the answer, and write ``tune.json`` and the curve as SVG and PNG."""
    from steppe import hardware
    from steppe.experiments.tuning import search, space
    from steppe.experiments.tuning.plot import write
    from steppe.experiments.tuning.result import table, verdict
    from steppe.training.run import load_data

    config: Run = configuration(add_arguments, Run, options, command)
    budget = make(TuningBudget, options)
    ranges, out = space(config.method, options.settings), Path(options.out)
    terminal = console(stderr=True) if options.json else console()
    hardware.keep_freed_memory()
    images: DataSet | InputError
    try:
        images = load_data(config)
        print_images(terminal, config.dataset, images.description())
    except InputError as error:
        images = error
    settings = ", ".join(f"{r.name} from {r.low:g} to {r.high:g}" for r in ranges)
    print_text(terminal, f"{config.label}: {settings}; up to {budget.trials} trials")
    with terminal.status("starting") as status:

        def progress(one: Run, news: TrainingStatus | str) -> None:
            if isinstance(news, str):
                print_text(terminal, f"{one.title}: {news}")
            else:
                status.update(f"{one.title}: epoch {news.epoch}, loss {news.loss:.3f}")

        result = search(config, ranges, budget, out, images, progress)
    if isinstance(images, InputError):
        print_text(terminal, f"the search is finished and needs no images ({images})")
    content = write(result, out, command)
    if options.json:
        print(json.dumps(content, indent=1))
        return 0
    terminal.print(table(result))
    for sentence in verdict(result):
        terminal.print(sentence, highlight=False, markup=False)
    print_text(terminal, f"\nbest: {result.best.method}\ncurve: {out / 'tune.svg'}")
    return 0
