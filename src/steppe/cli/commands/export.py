"""``steppe export``: write a run's deployed network as a plain module."""

import json
from pathlib import Path
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_text
from steppe.cli.options import name_code


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("out", type=str, help="folder that the network is written to")
    parser.add_argument(
        "--weights", type=Literal["best", "last"], default="best", help="best validation epoch or last epoch"
    )
    parser.add_argument(
        "--network", type=int, default=None, help="of a method of several networks, the number of the one to write"
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="one of several averages, by its name in the record"
    )
    parser.add_argument(
        "--code", type=str, nargs="*", default=[], help="your code that the run's record names: module:name"
    )
    parser.add_argument("--onnx", action=ActionYesNo, default=False, help="write ONNX too")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the description as JSON")


def run(options: Namespace, command: str) -> int:
    """Write the files and print their description."""
    from steppe.training.export import export

    out = Path(options.out)
    name_code(options, options.code)
    content = export(
        Path(options.run),
        out,
        which=options.weights,
        output=options.output,
        onnx=options.onnx,
        network=options.network,
    )
    if options.json:
        print(json.dumps(content, indent=1))
        return 0
    size = f"{content['model']}, {content['parameters']:,} parameters, epoch {content['epoch']}"
    names = ", ".join(content["files"].values())
    print_text(console(), f"{size}; each file predicts what {content['method']} predicts\n{out}: {names}")
    return 0
