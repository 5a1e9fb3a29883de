"""The options of the data: which images, their size and their augmentation."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from steppe.config._checks import check_choices, check_positive
from steppe.config.fields import added
from steppe.errors import InputError

Normalize = Literal["unit", "standard"]
TTA = Literal["", "mirror", "mirror-shift"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """How the images of a data set are chosen, split, sized and augmented.

    Attributes:
        train: Number of training images, or their share below 1, sampled per class; all if not given.
        val: Training images held out for validation: a fraction below 1, or a count; not used if the data set has
            validation images of its own.
        test: Number of test images, sampled per class; all if not given.
        size: Side in pixels that images are resized to; the data set's own size if not given (digits: 24).
        augment: Augmentations of each training batch, in this order: any of flip, crop, resized-crop, jitter,
            cutout, rotate, randaugment, mixup, cutmix; or none. flip:mode=alternate mirrors each image in every
            second epoch; crop:pad=2,mode=reflect pads two mirrored pixels instead of an eighth of the side in
            black.
        views: Augmentation pipelines that replace augment, one per network of a method that trains several
            (and for OKDPH's hybrid), or one for all: plain, crop-flip, crop-flip-rotate, crop-flip-cutout,
            crop-randaugment, crop-autoaugment. If not given, all networks see the same image, except OKDPH's:
            its further views are random crops of it.
        noise: Standard deviation of Gaussian noise on every normalised pixel: new in each epoch and view for
            training images, fixed per image for validation and test; 1 is usual.
        legacy_share: Share of each class to train on, sampled with repetitions as in OKDPH's published lists (0.1
            and 0.01 there); train samples without repetitions.
        imbalance: Ratio of the largest to the smallest class of a long-tailed training part: class c of C keeps
            n imbalance^(-c / (C - 1)) of its n images, n those of the smallest class before; 10 to 200 are usual.
        label_noise: Share of the training labels that are replaced by another class, at random (symmetric noise);
            validation and test labels stay.
        classes: Only the samples of these classes, by their names, numbered anew in this order; all if not given.
        normalize: 'unit' gives values in [0, 1]; 'standard' subtracts the training images' mean per channel
            and divides by their standard deviation.
        tta: Views of each validation and test image whose mean logits are evaluated (test-time augmentation):
            mirror, the image and its mirror image; mirror-shift, with equal weight these two and both of them
            shifted by one pixel up and left or down and right. The image alone if not given.
        split_seed: Seed of the split and of the subsets; the same for all runs of a comparison, or with its
            resplit for all runs of a seed.
        skip_corrupt: Leave unreadable images out instead of stopping before training.
    """

    train: int | float | None = None
    val: float = 0.1
    test: int | None = None
    size: int | None = None
    augment: tuple[str, ...] = ("cutmix",)
    normalize: Normalize = "unit"
    split_seed: int = 0
    skip_corrupt: bool = False
    views: tuple[str, ...] = ()
    noise: float = 0.0
    legacy_share: float | None = None
    imbalance: float | None = added(None)
    label_noise: float = added(0.0)
    classes: tuple[str, ...] = added(())
    tta: TTA = added("")

    def __post_init__(self) -> None:
        for name in ("augment", "views"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.augment == ("none",):
            object.__setattr__(self, "augment", ())
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))  # a file may have numbers
        if len(set(self.classes)) != len(self.classes):
            raise InputError(f"data.classes names one twice: {' '.join(self.classes)}; name each once")
        for name in ("train", "val", "test", "legacy_share"):
            check_positive(f"data.{name}", getattr(self, name))
        if self.train is not None and self.train >= 1:
            if self.train != int(self.train):
                raise InputError(f"data.train is {self.train}; give a share below 1 or a whole number of images")
            object.__setattr__(self, "train", int(self.train))
        if self.imbalance is not None and self.imbalance < 1:
            raise InputError(f"data.imbalance is {self.imbalance}; give largest over smallest class, at least 1")
        if not 0 <= self.label_noise <= 1:
            raise InputError(f"data.label_noise is {self.label_noise}; give a share from 0 to 1")
        check_positive("data.size", self.size, 8, strict=False)
        check_choices(self, "data.")
        if self.val >= 1 and self.val != int(self.val):
            raise InputError(f"data.val is {self.val}; give a fraction below 1 or a whole number of images")
        check_positive("data.noise", self.noise, strict=False)
        if self.legacy_share is not None and (self.legacy_share >= 1 or self.train is not None):
            raise InputError(
                f"data.legacy_share is {self.legacy_share} and data.train {self.train}; give a share below 1, "
                "and only one of them"
            )
        if len({step.partition(":")[0] for step in self.augment}) != len(self.augment):
            raise InputError(f"data.augment names a step twice: {', '.join(self.augment)}; name each once")

    def split(self) -> dict[str, Any]:
        """Return what decides which samples are trained on and validated, and how the network sees them."""
        names = ("train", "val", "split_seed", "classes", "legacy_share", "size", "normalize")
        return {name: getattr(self, name) for name in names}

    def with_split(self, number: int) -> "Data":
        """Return the same options with the split ``split_seed + number``."""
        return replace(self, split_seed=self.split_seed + number)
