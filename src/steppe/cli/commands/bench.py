"""``steppe bench``: what a step of each method costs on this machine."""

import dataclasses
import json

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli import console, tables
from steppe.errors import InputError


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", type=str, nargs="?", default="methods", help="always methods")
    parser.add_argument(
        "names", type=str, nargs="*", default=[], help="methods, module:Class or file.py:Class; all if none"
    )
    parser.add_argument("--model", type=str, default="simple-cnn", help="network")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=5, help="steps per timing")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each method")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the results as JSON")


def run(options: Namespace, command: str) -> int:
    """Measure, and print a table or JSON."""
    from steppe import hardware, methods
    from steppe.bench import methods_cost
    from steppe.bench.methods import StepCost

    if options.kind != "methods":
        raise InputError(f"kind is {options.kind!r}; write `steppe bench methods NAMES`")
    terminal, environment = console.console(), hardware.environment()
    with terminal.status("starting") as status:

        def measured(setting: str) -> list[StepCost]:
            return methods_cost(
                options.names or methods.names(),
                model=options.model,
                batch=options.batch,
                size=options.size,
                steps=options.steps,
                repeats=options.repeats,
                progress=lambda repeat: status.update(f"{setting}: repeat {repeat} of {options.repeats}"),
            )

        on_cpu = hardware.device().type == "cpu"
        # before the setting of the commands, which lasts as long as the process
        default = [cost.over_floor for cost in measured("the C library's memory settings")] if on_cpu else []
        hardware.keep_freed_memory()
        costs = measured("freed memory kept")
        if default:
            pairs = zip(costs, default, strict=True)
            costs = [dataclasses.replace(cost, over_floor_default=over) for cost, over in pairs]
    if options.json:
        results = [dataclasses.asdict(cost) for cost in costs]
        print(json.dumps({"command": command, "environment": environment, "results": results}, indent=1))
    else:
        machine = f"{environment['processor']}, {environment['device']}, torch {environment['torch']}"
        terminal.print(tables.costs(costs), highlight=False, markup=False, soft_wrap=True)
        terminal.print(f"\n{command}\n{machine}", highlight=False)
    return 0
