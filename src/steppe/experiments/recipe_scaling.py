"""From a recipe, what else was asked for and a scale to a run or a comparison, and what to say about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from steppe import data
from steppe.config import Data, Run, Study, recipes
from steppe.distributed import collectives
from steppe.errors import InputError

C = TypeVar("C", Run, Study)
Progress = Callable[[int, int], None]


def scaled_run(
    recipe: str, scale: float, given: Mapping[str, Any], progress: Progress | None = None
) -> tuple[Run, list[str]]:
    """Return the run of a recipe at a scale, and lines that say what it became.

    Args:
        recipe: NAME or NAME:VARIANT, several words of it joined by colons; see `Recipe.choose`.
        scale: Share of the recipe's computation: images trained on and epochs are each multiplied by its square
            root. Schedules keep their shape, since the recipe gives them in shares of the training.
        given: Fields of `Run` that win over the recipe and are not scaled, nested ones with a dot.
        progress: As in `steppe.data.load`; a scale needs to know how many images there are.

    Raises:
        InputError: An unknown recipe, word or setting, a scale outside (0, 1], or data that are missing.
    """
    _check(scale)
    name, *variant = recipe.split(":")
    choice = recipes.load(name).choose(variant, given)
    whole = choice.run()
    row = f"row {choice.row}" if choice.row else "no row of its table"
    said = (
        f"recipe {name}, {row}: {whole.method} with {whole.model} on {whole.dataset}, settings for {choice.data}"
    )
    small, more = _at(scale, whole, whole.dataset, given, progress)
    return small, [said, *more]


def scaled_study(
    recipe: str, scale: float, given: Mapping[str, Any], progress: Progress | None = None
) -> tuple[Study, list[str]]:
    """Return the comparison of a recipe's rows at a scale, and lines that say what it became.

    ``given`` holds fields of `Study`; methods may be rows. All of a comparison train alike, so rows whose settings
    differ can only be compared where ``given`` states those settings.

    Raises:
        InputError: As `run`, and for rows, data or models that the recipe trains differently.
    """
    _check(scale)
    name, *variant = recipe.split(":")
    held = recipes.load(name)
    common = {k: v for k, v in given.items() if k not in ("methods", "models", "datasets", "seeds")}
    lists = {k: [{k: v} for v in given.get(f"{k}s", ())] or [{}] for k in ("dataset", "model")}
    rows = given.get("methods") or [w for w in variant if w in held.methods] or list(held.methods)
    choices = [
        held.choose(variant, {**common, **dataset, **model, "method": row})
        for dataset, model, row in product(*lists.values(), rows)
    ]
    _check_alike(name, choices)
    chosen = {k: tuple(dict.fromkeys(str(c.values[k]) for c in choices)) for k in _OF_RUN}
    if len(chosen["method"]) > len(rows):
        raise InputError(
            f"recipe {name} has other methods for other data or models ({', '.join(chosen['method'])}); "
            "compare on one of them at a time"
        )
    one = choices[0].run()
    shared = {
        f.name: getattr(one, f.name) for f in dataclasses.fields(Study) if f.name in Run.__dataclass_fields__
    }
    whole = Study(
        methods=chosen["method"],
        models=chosen["model"],
        datasets=chosen["dataset"],
        seeds=tuple(given.get("seeds", Study.seeds)),
        **shared,
    )
    small, more = _at(scale, whole, whole.datasets[0], given, progress)
    return small, [f"recipe {name}, settings for {choices[0].data}", *more]


def _check_alike(name: str, choices: Sequence[recipes.Choice]) -> None:
    """Refuse rows that the recipe trains differently."""
    for key in dict.fromkeys(key for choice in choices for key in choice.values if key not in _OF_RUN):
        held = {str(choice.values["method"]): choice.values.get(key, "its default") for choice in choices}
        if len({str(value) for value in held.values()}) > 1:
            told = ", ".join(f"{value} for {method}" for method, value in held.items())
            raise InputError(
                f"recipe {name} has {key} {told}, and a comparison trains all alike; "
                f"give --{key}, or choose rows with --methods"
            )


_SHARED = 8  # images that a batch holds at least
_OF_RUN = ("method", "model", "dataset")


def _check(scale: float) -> None:
    if not 0 < scale <= 1:
        raise InputError(f"scale is {scale:g}; give a share of the recipe's computation, above 0 and at most 1")


def _at(
    scale: float, whole: C, dataset: str, given: Mapping[str, Any], progress: Progress | None
) -> tuple[C, list[str]]:
    if scale == 1:
        return whole, []
    images, classes = collectives.current_world().main_process_first(lambda: _sizes(dataset, whole.data, progress))
    small = scaled(whole, images, scale, least=2 * classes, fixed=given)
    left = small.data.train or round(images * _legacy(small) / _legacy(whole))
    text = (
        f"scale {scale:g}: {left} of {images} training images, "
        f"{small.epochs} of {whole.epochs} epochs, batches of {small.batch}"
    )
    return small, [text]


def scaled(whole: C, images: int, scale: float, *, least: int = 4, fixed: Collection[str] = ()) -> C:
    """Return this with a share of its computation, ``images`` being all its training images.

    Images and epochs are each multiplied by the square root of ``scale``, down to ``least`` images and one epoch.
    A batch of more than half of the images shrinks to that, so that an epoch has two. A last batch of fewer than 8
    images is left out: methods and processes share it, and BatchNorm takes no single one. What is ``fixed`` stays.
    Images chosen by ``data.legacy_share`` go on being chosen so, by a smaller share.
    """
    part = math.sqrt(scale)
    stays = {"data.train", "data.legacy_share"} & {*fixed}
    train = images if stays else min(images, max(least, round(images * part)))
    epochs = whole.epochs if "epochs" in fixed else max(1, round(whole.epochs * part))
    batch = whole.batch if "batch" in fixed else min(whole.batch, train // 2)
    rest = train % batch
    if rest < _SHARED and train - rest >= least and not stays:
        train -= rest
    change: dict[str, Any] = {"train": train}
    if whole.data.legacy_share is not None:
        change = {"legacy_share": _legacy(whole) * train / images}
    return dataclasses.replace(whole, data=dataclasses.replace(whole.data, **change), epochs=epochs, batch=batch)


def _legacy(whole: Run | Study) -> float:
    return whole.data.legacy_share or 1.0


def _sizes(dataset: str, options: Data, progress: Progress | None) -> tuple[int, int]:
    """Return the number of training images, and of classes."""
    held = data.load(dataset, options, progress=progress)
    return len(held.train), len(held.classes)
