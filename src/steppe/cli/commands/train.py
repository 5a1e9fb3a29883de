"""``steppe train``: train one run, or say what it would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_images, print_memory, print_text
from steppe.cli.options import add_config, configuration
from steppe.config import Run

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--plan", action=ActionYesNo, default=False, help="print what the training would do and when, and stop"
    )
    add_config(parser, Run, "out", "folder under which the run's own folder is made")


def run(options: Namespace, command: str) -> int:
    """Train the run, or print its plan."""
    from steppe import hardware
    from steppe.cli.progress import Decoding, Display
    from steppe.distributed import collectives
    from steppe.errors import InputError
    from steppe.experiments import run_lock
    from steppe.training.dry_run import plan
    from steppe.training.run import (
        check_augmentation,
        check_run,
        finished_result,
        load_data,
        memory_bytes,
        train_run,
    )

    config: Run = configuration(add_arguments, Run, options, command)
    hardware.keep_freed_memory()
    terminal, world = console(), collectives.current_world()
    folder = Path(options.out) / "runs" / config.digest()
    try:
        with Decoding(terminal) as progress:
            images = world.main_process_first(lambda: load_data(config, progress))
    except InputError as error:
        result = None if options.plan else world.on_main_process(lambda: finished_result(config, folder))
        if result is None:
            raise
        print_text(terminal, f"the run is finished and needs no images ({error})")
        with Display(1, terminal) as display:
            display.update(config.title, result)
        return _end(terminal, folder, result)
    check_augmentation(config.data, {config.dataset: images})
    check_run(config, images)
    print_images(terminal, config.dataset, images.description())
    if options.plan:
        lines = plan(config, images)
        width = max(len(label) for label, _ in lines)
        print_text(terminal, "\n".join(f"{label:<{width}}  {value}" for label, value in lines))
        return 0
    print_memory(terminal, config.label, memory_bytes(config, images))
    lock = world.held_by_main_process(lambda: run_lock.locked_run(folder))
    with lock, Display(1, terminal) as display:
        result = train_run(config, folder, images, lambda status: display.update(config.title, status))
        display.update(config.title, result)
    return _end(terminal, folder, result)


def _end(terminal: Console, folder: Path, result: dict[str, Any]) -> int:
    """Print where the records are; return the exit code."""
    print_text(terminal, f"records: {folder}")
    return 0 if result["status"] == "ok" else 1
