"""``steppe soup``: write the mean of several runs' networks as a plain module."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli.console import console, print_text


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs of one network on the same data")
    parser.add_argument("--out", type=str, default="soup", help="folder that the network is written to")
    parser.add_argument(
        "--kind",
        type=Literal["greedy", "uniform"],
        default="greedy",
        help="mean of all runs, or of those that improve the validation, best first",
    )
    parser.add_argument(
        "--weights", type=Literal["best", "last"], default="best", help="best validation epoch or last epoch"
    )
    parser.add_argument("--onnx", action=ActionYesNo, default=False, help="write ONNX too")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the description as JSON")


def run(options: Namespace, command: str) -> int:
    """Average, write the files and print the validation of each run and of the mean."""
    from steppe.analysis.soup import make_soup
    from steppe.training.export import export

    folders, out = list(map(Path, options.runs)), Path(options.out)
    soup = make_soup(folders, greedy=options.kind == "greedy", which=options.weights)
    facts = {
        "kind": options.kind,
        "runs": [str(folder) for folder in soup.members],
        "validation": asdict(soup.value),
        "validation of each": {str(folder): asdict(value) for folder, value in soup.singles.items()},
    }
    content = export(soup.members[0], out, which=options.weights, onnx=options.onnx, soup=(soup.weights, facts))
    if options.json:
        print(json.dumps(content, indent=1))
        return 0
    values = [*soup.singles.items(), (f"{options.kind} soup of {len(soup.members)}", soup.value)]
    for name, value in values:
        score = "" if value.accuracy is None else f"accuracy {100 * value.accuracy:.2f}%, "
        print_text(console(), f"{name}: validation {score}loss {value.loss:.4f}")
    print_text(console(), f"{out}: {', '.join(content['files'].values())}")
    return 0
