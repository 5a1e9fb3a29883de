"""``steppe list``: names of methods, models, data sets or recipes."""

import json
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe.cli import tables


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    kinds = Literal["methods", "models", "datasets", "recipes"]
    parser.add_argument(
        "kind", type=kinds, nargs="?", default="methods", help="methods, models, datasets or recipes"
    )
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the list as JSON")


def run(options: Namespace, command: str) -> int:
    """Print the list."""
    from steppe import data, methods, models
    from steppe.config import recipes, suites

    if options.kind == "methods":
        rows = [methods.row(name) for name in methods.names()]
        print(json.dumps([vars(r) for r in rows], indent=1) if options.json else tables.methods(rows))
    elif options.kind == "recipes":
        titles = {name: recipes.load(name).title for name in recipes.names()}
        titles |= {name: suites.load(name).title for name in suites.names()}
        print(json.dumps(titles, indent=1) if options.json else recipes.listing(titles))
    else:
        names = (models if options.kind == "models" else data).names()
        print(json.dumps(names) if options.json else "\n".join(names))
    return 0
