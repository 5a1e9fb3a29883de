"""A run or a comparison from a recipe, overrides and a scale, with lines that describe it."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from steppe import data
from steppe.config import Run, Study, recipes
from steppe.distributed import collectives
from steppe.errors import InputError

C = TypeVar("C", Run, Study)
DecodingProgress = Callable[[int, int], None]
_SMALLEST_BATCH = 8
_OF_RUN = ("method", "model", "dataset")


def scaled_run(
    recipe: str, scale: float, overrides: Mapping[str, Any], progress: DecodingProgress | None = None
) -> tuple[Run, list[str]]:
    """Return the run of a recipe at a scale, and lines that describe it.

    Args:
        recipe: NAME or NAME:VARIANT, several names of a variant joined by colons; see `Recipe.choose`.
        scale: Share of the recipe's computation: training images and epochs are each multiplied by its square
            root. Schedules keep their shape, since the recipe gives them in shares of the training.
        overrides: Fields of `Run` that replace the recipe's and are not scaled, nested ones with a dot.
        progress: As in `steppe.data.load`; a scale needs the number of images.

    Raises:
        InputError: An unknown recipe, variant or setting, a scale outside (0, 1], or data that are missing.
    """
    _check_scale(scale)
    name, *variant = recipe.split(":")
    choice = recipes.load(name).choose(variant, overrides)
    full = choice.run()
    row = f"row {choice.row}" if choice.row else "no row of its table"
    line = f"recipe {name}, {row}: {full.label} with {full.model} on {full.dataset}, settings for {choice.data}"
    small, more = _at_scale(scale, full, full.dataset, overrides, progress)
    return small, [line, *more]


def scaled_study(
    recipe: str, scale: float, overrides: Mapping[str, Any], progress: DecodingProgress | None = None
) -> tuple[Study, list[str]]:
    """Return the comparison of a recipe's rows at a scale, and lines that describe it.

    ``overrides`` are fields of `Study`; methods may be rows. All methods of a comparison train with the same
    settings, so rows with different settings can only be compared if ``overrides`` has those settings.

    Raises:
        InputError: As `scaled_run`, and for rows, data or models that the recipe trains differently.
    """
    _check_scale(scale)
    name, *variant = recipe.split(":")
    loaded = recipes.load(name)
    common = {k: v for k, v in overrides.items() if k not in ("methods", "models", "datasets", "seeds")}
    lists = {k: [{k: v} for v in overrides.get(f"{k}s", ())] or [{}] for k in ("dataset", "model")}
    rows = overrides.get("methods") or [w for w in variant if w in loaded.methods] or list(loaded.methods)
    choices = [
        loaded.choose(variant, {**common, **dataset, **model, "method": row})
        for dataset, model, row in product(*lists.values(), rows)
    ]
    _check_alike(name, choices)
    methods, models, datasets = (tuple(dict.fromkeys(str(c.values[k]) for c in choices)) for k in _OF_RUN)
    if len(methods) > len(rows):
        raise InputError(
            f"recipe {name} has other methods for other data or models ({', '.join(methods)}); "
            "compare on one of them at a time"
        )
    first = choices[0].run()
    shared = {
        f.name: getattr(first, f.name) for f in dataclasses.fields(Study) if f.name in Run.__dataclass_fields__
    }
    seeds = tuple(overrides.get("seeds", Study.seeds))
    methods = (first.method, *methods[1:])  # the first one's text is parsed already
    full = Study(methods=methods, models=models, datasets=datasets, seeds=seeds, **shared)
    small, more = _at_scale(scale, full, full.datasets[0], overrides, progress)
    return small, [f"recipe {name}, settings for {choices[0].data}", *more]


def _check_alike(name: str, choices: Sequence[recipes.Choice]) -> None:
    """Refuse rows that the recipe trains differently."""
    for key in dict.fromkeys(key for choice in choices for key in choice.values if key not in _OF_RUN):
        values = {str(choice.values["method"]): choice.values.get(key, "its default") for choice in choices}
        if len({str(value) for value in values.values()}) > 1:
            text = ", ".join(f"{value} for {method}" for method, value in values.items())
            raise InputError(
                f"recipe {name} has {key} {text}, and a comparison trains all alike; "
                f"give --{key}, or choose rows with --methods"
            )


def _check_scale(scale: float) -> None:
    if not 0 < scale <= 1:
        raise InputError(f"scale is {scale:g}; give a share of the recipe's computation, above 0 and at most 1")


def _at_scale(
    scale: float, full: C, dataset: str, overrides: Mapping[str, Any], progress: DecodingProgress | None
) -> tuple[C, list[str]]:
    if scale == 1:
        return full, []

    def sizes() -> tuple[int, int]:
        images = data.load(dataset, full.data, progress=progress)
        return len(images.train), len(images.classes)

    images, classes = collectives.current_world().main_process_first(sizes)
    small = scaled(full, images, scale, least=2 * classes, fixed=overrides)
    left = round(images * (small.data.legacy_share or 1) / (full.data.legacy_share or 1))
    if small.data.train is not None and small.data.train >= 1:
        left = int(small.data.train)
    text = (
        f"scale {scale:g}: {left} of {images} training images, "
        f"{small.epochs} of {full.epochs} epochs, batches of {small.batch}"
    )
    return small, [text]


def scaled(full: C, images: int, scale: float, *, least: int = 4, fixed: Collection[str] = ()) -> C:
    """Return the configuration with a share of its computation; ``images`` is its number of training images.

    Images and epochs are each multiplied by the square root of ``scale``, down to ``least`` images and one epoch.
    The batch is at most half of the images, so that an epoch has two. A last batch of fewer than 8 images is
    omitted, because methods and processes divide it, and BatchNorm refuses a single image. Fields in ``fixed`` are
    unchanged. With ``data.legacy_share`` that share is reduced instead.
    """
    share = math.sqrt(scale)
    images_fixed = {"data.train", "data.legacy_share"} & {*fixed}
    train = images if images_fixed else min(images, max(least, round(images * share)))
    epochs = full.epochs if "epochs" in fixed else max(1, round(full.epochs * share))
    batch = full.batch if "batch" in fixed else min(full.batch, train // 2)
    rest = train % batch
    if rest < _SMALLEST_BATCH and train - rest >= least and not images_fixed:
        train -= rest
    change: dict[str, Any] = {"train": train}
    if full.data.legacy_share is not None:
        change = {"legacy_share": full.data.legacy_share * train / images}
    return dataclasses.replace(full, data=dataclasses.replace(full.data, **change), epochs=epochs, batch=batch)
