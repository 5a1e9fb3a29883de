"""The augmentation steps that a run can name."""

from collections.abc import Sequence

from steppe.data.transforms.auto_augment import randaugment, rotate
from steppe.data.transforms.basic import Transform, crop, cutout, cutout_with, flip, jitter, resized_crop
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


def make_steps(names: Sequence[str], blank: tuple[float, ...] | None = None) -> list[Transform]:
    """Return the named steps in this order; ``blank`` (C) is the colour of cutout.

    Raises InputError for an unknown name, and for two steps that mix labels.
    """
    for name in names:
        if name not in STEPS:
            raise unknown("augmentation in data.augment", name, STEPS)
    if all(name in names for name in MIXING):
        raise InputError("data.augment has both mixup and cutmix; choose one of them")
    return [cutout_with(blank) if name == "cutout" else STEPS[name] for name in names]
