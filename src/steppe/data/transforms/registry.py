"""The augmentation steps that a run can name."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from steppe.config import parse_spec
from steppe.data.transforms.auto_augment import randaugment, rotate
from steppe.data.transforms.basic import (
    Transform,
    crop,
    crop_with,
    cutout,
    cutout_with,
    flip,
    flip_with,
    jitter,
    resized_crop,
)
from steppe.data.transforms.mixup_cutmix import cutmix, mixup
from steppe.errors import InputError, unknown

STEPS: dict[str, Transform] = {
    "flip": flip,
    "crop": crop,
    "resized-crop": resized_crop,
    "jitter": jitter,
    "cutout": cutout,
    "rotate": rotate,
    "randaugment": randaugment,
    "mixup": mixup,
    "cutmix": cutmix,
}
MIXING = ("mixup", "cutmix")
_WITH_SETTINGS: dict[str, Callable[..., Transform]] = {"flip": flip_with, "crop": crop_with}


def make_steps(names: Sequence[str], blank: tuple[float, ...] | None = None) -> list[Transform]:
    """Return the named steps in this order, as crop:pad=2; ``blank`` (C) is the colour of cutout.

    Raises InputError for an unknown name or setting, and for two steps that mix labels.
    """
    if all(name in names for name in MIXING):
        raise InputError("data.augment has both mixup and cutmix; choose one of them")
    if "none" in names:
        raise InputError("data.augment has none and others; give none alone, or leave it out")
    return [_make(*parse_spec(name, "augmentation in data.augment"), blank) for name in names]


def _make(name: str, settings: Mapping[str, Any], blank: tuple[float, ...] | None) -> Transform:
    if name not in STEPS:
        raise unknown("augmentation in data.augment", name, STEPS)
    make = _WITH_SETTINGS.get(name)
    for key in settings:
        if make is None:
            raise InputError(f"data.augment has {name} with {key}={settings[key]}, and {name} takes no settings")
        if key not in (keys := list(signature(make).parameters)):
            raise unknown(f"setting of {name} in data.augment", key, keys)
    if name == "cutout":
        return cutout_with(blank)
    return make(**settings) if make and settings else STEPS[name]
