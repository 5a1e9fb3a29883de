"""What a command asks for: a run or a comparison, by its flags and by a recipe that they may name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from steppe.cli import console
from steppe.cli.options import explicit, make
from steppe.config import Run
from steppe.errors import InputError


def as_flags(argv: Sequence[str]) -> list[str]:
    """Return the words of a command with ``recipe=NAME`` and ``scale=0.02`` as the flags they stand for."""
    if not argv or argv[0] not in ("train", "compare"):
        return list(argv)
    return [f"--{word}" if re.match("(recipe|scale)=", word) else word for word in argv]


def add_recipe(parser: ArgumentParser) -> None:
    """Add the flags that name a recipe."""
    parser.add_argument(
        "--recipe", type=str, default=None, help="settings of a paper's table: NAME or NAME:VARIANT"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the recipe's computation, 1 for all of it"
    )


def configured(build: Callable[[ArgumentParser], None], cls: type, given: Namespace, command: str) -> Any:
    """Return the run or comparison (``cls``) that a command asks for, and say what its recipe became.

    ``build`` adds the command's flags to a parser. What the command states itself wins over the recipe.

    Raises InputError for a scale without a recipe, and whatever the recipe or the configuration refuses.
    """
    if given.recipe is None:
        if given.scale != 1:
            raise InputError(f"scale is {given.scale:g} and there is no recipe to scale; add --recipe NAME")
        return make(cls, given)
    from steppe.cli.progress import Decoding
    from steppe.experiments import recipe_scaling

    stated = explicit(build, cls, command)
    with Decoding(console.console()) as progress:
        found, said = (recipe_scaling.scaled_run if cls is Run else recipe_scaling.scaled_study)(
            given.recipe, given.scale, stated, progress
        )
    console.console().print("\n".join(said), highlight=False, markup=False, soft_wrap=True)
    return found
